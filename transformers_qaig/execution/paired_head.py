"""Runs a model's head on two hidden states at once: those of the quantized model, and those of the full one.

So both get what the model does with logits: a scale, a soft cap. Only the tokens that count are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .offload import copy_to_device

Head = Callable[[Tensor], Tensor]


class NoSingleHead(RuntimeError):
    """The head does not run once in a forward pass, on a hidden state for each token."""


@contextmanager
def _instead(head: nn.Module, run: Head) -> Iterator[None]:
    """Makes `run` the forward of a head, within the context."""
    before = vars(head).get("forward")
    head.forward = run
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before


def hidden_at_head(
    model: nn.Module, head: nn.Module, sample: Mapping[str, Any], counts: Tensor, device: torch.device | str | None
) -> Tensor:
    """Returns the hidden states that enter the head at some tokens: [A, C] on the CPU.

    Args:
        model: within [`sequential_onload`].
        head: of the model.
        sample: the model's inputs, on the CPU.
        counts: int64 [A], positions of the tokens among all of the sample, batch by batch.
        device: where the model computes.

    Raises:
        NoSingleHead: there are no such hidden states.
    """
    kept: list[Tensor] = []
    forward = head.forward

    def run(hidden: Tensor) -> Tensor:
        kept.append(_rows(hidden, counts, sample))
        return forward(hidden[:, :1])

    with torch.no_grad(), _instead(head, run):
        model(**copy_to_device(sample, device), use_cache=False)
    if len(kept) != 1:
        raise NoSingleHead(f"the head runs {len(kept)} times in a forward pass")
    return kept[0].cpu()


def divergence(
    model: nn.Module,
    heads: tuple[nn.Module, Head | None, Head],
    sample: Mapping[str, Any],
    counts: Tensor,
    hidden: Tensor,
    device: torch.device | str | None,
) -> Tensor:
    """Computes the sum over some tokens of KL(full ‖ quantized) of what the model predicts next.

    Args:
        model: quantized, within [`sequential_onload`].
        heads: the module in the model, what stands for it if that is not itself, and the full model's.
        sample: the model's inputs, on the CPU.
        counts: see [`hidden_at_head`].
        hidden: what that returned in full precision.
        device: where the model computes.
    """
    head, own, full = heads
    own = own or head.forward

    def run(entering: Tensor) -> Tensor:
        rows = _rows(entering, counts, sample)
        with torch.no_grad():
            wanted = full(hidden.to(rows))
        return torch.stack([own(rows), wanted])

    with _instead(head, run):
        logits = model(**copy_to_device(sample, device), use_cache=False).logits
    if logits.ndim != 3 or logits.shape[:2] != (2, len(counts)):
        raise NoSingleHead(f"the logits are {list(logits.shape)}")
    got, wanted = logits.float().log_softmax(-1)
    return nn.functional.kl_div(got, wanted.detach(), reduction="sum", log_target=True)


def _rows(hidden: Tensor, counts: Tensor, sample: Mapping[str, Any]) -> Tensor:
    """Returns the rows [A, C] of the tokens that count."""
    ids = sample.get("decoder_input_ids", sample.get("input_ids"))
    if hidden.ndim != 3 or ids is None or hidden.shape[:2] != ids.shape:
        raise NoSingleHead(f"the head gets hidden states {list(hidden.shape)}")
    return hidden.flatten(0, 1)[counts.to(hidden.device)]
