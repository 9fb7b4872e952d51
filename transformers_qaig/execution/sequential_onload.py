"""Runs a whole model forwards and backwards in float32 with one block at a time on the device.

A backward pass reads a block's weights after its forward is over. So each block is checkpointed: it runs again, with
its weights copied again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..utils.caches import with_own_caches
from .onload import copies_of, onload


@contextmanager
def sequential_onload(
    model: nn.Module, blocks: Sequence[nn.Module], device: torch.device | str | None
) -> Iterator[None]:
    """Makes the model compute in float32 with one block at a time on `device`, within the context.

    A block's weights are copied there when it runs. For a backward pass only its inputs are kept, and it runs again.
    What is around the blocks (embeddings, towers, head) is copied for the whole context. So the device holds the parts
    around the blocks, one block, its activations for one batch, and each block's input.

    Args:
        model: its parameters need no gradients.
        blocks: run one after the other. Their own parameters stay where they are.
        device: None computes where the model is.
    """
    with ExitStack() as stack:
        stack.enter_context(onload(model, device, dtype=torch.float32, without=blocks))
        for block in blocks:
            stack.callback(_restore, block, vars(block).get("forward"))
            block.forward = _Onloaded(block, device)
        yield


def copy_to_device(sample: Mapping[str, Any], device: torch.device | str | None) -> dict[str, Any]:
    """Copies one sample's inputs to `device`, where `sequential_onload` has the parts that read them.

    Args:
        sample: the model's inputs.
        device: None leaves them where they are.
    """
    return {k: v.to(device) if isinstance(v, torch.Tensor) and device is not None else v for k, v in sample.items()}


class _Onloaded:
    """Stands in for `block.forward`."""

    def __init__(self, block: nn.Module, device: torch.device | str | None):
        self._block, self._device, self._body = block, device, _Body(block)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._run(*args, **kwargs)
        before, runs = with_own_caches((args, kwargs)), itertools.count()

        def run(*args: Any, **kwargs: Any) -> Any:
            if next(runs):  # again, for the gradient: the model's own caches have its keys and values already
                args, kwargs = with_own_caches(before)
            return self._run(*args, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        weights = copies_of(self._block, self._device, dtype=torch.float32)
        named = {f"block.{name}": weight for name, weight in weights.items()}
        return torch.func.functional_call(self._body, named, args, kwargs)


class _Body(nn.Module):
    """Runs a block's own `forward` without the block's hooks, which its caller runs: some collect hidden states."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block, self._forward = block, block.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)


def _restore(block: nn.Module, forward: Any) -> None:
    del block.forward
    if forward is not None:
        block.forward = forward
