"""Pauses a forward pass for every calibration sample.

The model's own `forward` stops at each block with the block's arguments. The calibration loop runs the block (or its
replacement) and passes the output back. The model's own code carries it to the next block. So what a model does between
its blocks needs no copy here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ..utils.logging import tqdm
from ..utils.memory import free_memory
from .interceptor import Forward, ForwardInterceptor
from .layer_inputs import LayerInputs, map_tensors, storage_bytes

WITH_ARGUMENTS = 2
"""Bytes that a block is called with, over those of its hidden states: positions and masks come on top."""
SHARE_OF_FREE_MEMORY = 0.125
"""Inputs that wait on the device take at most so much of what is free there."""


class Waiting(Mapping[int, LayerInputs]):
    """The samples whose forward is paused at one block, in order.

    A live view: a sample leaves it when its forward is resumed, so that nothing here keeps its tensors alive.
    """

    def __init__(self, forwards: Sequence[Forward], index: int):
        self._forwards = forwards
        self._index = index

    def __getitem__(self, sample: int) -> LayerInputs:
        if not 0 <= sample < len(self._forwards) or not self._stands(sample):
            raise KeyError(f"sample {sample} does not wait at block {self._index}")
        call = self._forwards[sample].call
        assert call is not None
        return call

    def __iter__(self) -> Iterator[int]:
        return (sample for sample in range(len(self._forwards)) if self._stands(sample))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _stands(self, sample: int) -> bool:
        forward = self._forwards[sample]
        return forward.call is not None and forward.index == self._index


class PausedForwards:
    """A forward pass of `model` for each sample, each paused at a block.

    ```python
    with PausedForwards(model, blocks, samples) as forwards:
        for index, block in enumerate(blocks):
            for sample, call in forwards.inputs(index).items():
                forwards.resume(sample, block(*call.args, **call.kwargs))
    ```

    Several over the same model may be open at the same time. Outside of a sample's forward an interceptor changes
    nothing, and a deep copy of a block has none. Hooks registered on a block itself run where it is called: in the
    sample's forward and, with `block(...)`, in the caller; `block.forward(...)` leaves them out.

    Leaving the context ends every unfinished forward and removes the interceptors, whatever happened. After the last
    block there is no need to resume: leaving without it saves the logits.

    Args:
        model: called as `model(**sample, use_cache=False)` under `no_grad`, in the mode (eval, train) it is in.
        blocks: the modules to stop at, in the order in which they run. A sample may skip some of them.
        samples: model inputs, on the device where the model expects them.
        absent: samples that are never started, as if they were dropped.
        inputs_device: where the tensors of a `LayerInputs` are put; None leaves them where the model has them.
        on_finish: called as `on_finish(sample, output)` with the output of a forward that ran to its end. Without it
            outputs are kept: see `outputs`.

    Raises:
        ValueError: a block is in `blocks` twice.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        samples: Sequence[Mapping[str, Any]],
        *,
        absent: Iterable[int] = (),
        inputs_device: torch.device | str | None = None,
        on_finish: Callable[[int, Any], None] | None = None,
    ):
        if len({id(block) for block in blocks}) != len(blocks):
            raise ValueError("`blocks` holds the same module twice: give each block once.")
        self._model = model
        self._blocks = list(blocks)
        self._samples = samples
        self._inputs_device = inputs_device
        self._outputs: list[Any] = [None] * len(samples)
        self._on_finish = on_finish or self._outputs.__setitem__
        self._forwards: list[Forward] = []
        self._dropped = set(absent)
        self._open: ExitStack | None = None

    def __enter__(self) -> PausedForwards:
        if self._open is not None:
            raise RuntimeError("this PausedForwards is already open: make another one for a second set of forwards.")
        with ExitStack() as stack:
            for block in self._blocks:
                stack.callback(ForwardInterceptor.at(block).release)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._open is None:
            return
        interceptors, self._open = self._open, None
        forwards, self._forwards = self._forwards, []
        with interceptors:  # removed even if a forward fails while it ends
            for forward in forwards:
                interceptors.callback(forward.end)

    def inputs(self, index: int) -> Waiting:
        """Returns the samples that are paused at block `index`, with their calls. Forwards start at the first call.

        Raises:
            IndexError: there is no such block.
            RuntimeError: outside of the context, or a sample still stands at an earlier block.
        """
        if self._open is None:
            raise RuntimeError("PausedForwards is not open: use it in a `with` statement.")
        if not 0 <= index < len(self._blocks):
            raise IndexError(f"there is no block {index}: there are {len(self._blocks)}.")
        unstarted = range(len(self._forwards), len(self._samples))
        for sample in tqdm(unstarted, desc="First forward passes", unit="sample", leave=False, disable=not unstarted):
            inputs = {**self._samples[sample], "use_cache": False}
            self._forwards.append(Forward(self._model, inputs, self._blocks, self._inputs_device))
            if sample not in self._dropped:
                with torch.random.fork_rng(devices=[]):  # a model that draws noise draws the same in every set
                    torch.manual_seed(sample)
                    self._advance(sample)
        for sample, forward in enumerate(self._forwards):
            if forward.call is not None and forward.index < index:
                raise RuntimeError(
                    f"sample {sample} still waits at block {forward.index}: resume it before block {index}."
                )
        return Waiting(self._forwards, index)

    def resume(self, sample: int, output: Any) -> None:
        """Passes the block's output to `sample`; its forward runs on to its next block or to its end.

        `output` is detached and moved to the device of the block's input. The model may write into it.

        Raises:
            RuntimeError: the sample is paused at no block, or its forward failed (the cause is chained).
        """
        if not 0 <= sample < len(self._forwards) or self._forwards[sample].call is None:
            raise RuntimeError(f"sample {sample} does not wait at any block.")
        self._advance(sample, map_tensors(lambda t: t.detach() if t.requires_grad else t, output))

    def drop(self, sample: int) -> None:
        """Ends `sample`'s forward, or never starts it: it is paused at no block any more."""
        self._dropped.add(sample)
        if sample < len(self._forwards):
            self._forwards[sample].end()

    def outputs(self) -> list[Any]:
        """The model's output for each sample: None if its forward did not finish, or if `on_finish` took it."""
        return list(self._outputs)

    def nbytes(self) -> int:
        """Returns the bytes of the storages that paused forwards hold as inputs of a block; each counted once."""
        return storage_bytes(tensor for forward in self._forwards if forward.call for tensor in forward.live_tensors())

    def _advance(self, sample: int, *value: Any) -> None:
        forward = self._forwards[sample]
        try:
            result = forward.run_on(forward.switch, *value)
        except Exception as error:
            where = f"after block {forward.index}" if forward.index >= 0 else "before the first block"
            raise RuntimeError(f"the forward of sample {sample} failed {where}: {error}") from error
        if forward.dead:
            self._on_finish(sample, result)


def waiting_device(device: torch.device | str | None, tokens: int, token_bytes: int) -> torch.device | str:
    """Returns where the inputs of paused forwards are kept: on `device` if they take little of its free memory.

    Args:
        device: where blocks run.
        tokens: of all samples, which wait in two models.
        token_bytes: of a token's hidden states.
    """
    if device is None or torch.device(device).type == "cpu":
        return "cpu"
    needed = 2 * WITH_ARGUMENTS * tokens * token_bytes
    return device if needed <= SHARE_OF_FREE_MEMORY * free_memory(torch.device(device)) else "cpu"
