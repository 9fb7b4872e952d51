"""Runs questions through a model in batches that memory bounds, and keeps their logits without filling it."""

import inspect
import math
import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, BinaryIO, overload

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from ..data.tensors import pixels_as
from ..utils.memory import free_memory
from ..utils.temporary import temporary_folder
from .questions import Question

LARGEST_BATCH = 32
SHARE = 4
"""A batch may take one over this of the memory that is free."""
PER_CHANNEL, PER_LOGIT = 64, 16
"""Bytes that a token takes for each channel of the hidden states, and for each entry of the vocabulary it predicts."""
IN_MEMORY = 2 << 30
"""Bytes of kept logits above which the rest goes to a file."""


def batches_of(model: Any, questions: Sequence[Question], batch_size: int | None) -> list[list[int]]:
    """Groups the indices of questions that can be concatenated along the batch dimension without padding.

    Args:
        model: that will run them, or anything else, whose logits are known already.
        questions: to group.
        batch_size: questions of a batch, at most; None: as many as memory has room for.
    """
    shapes = [tuple((name, tuple(value.shape)) for name, value in question.inputs.items()) for question in questions]
    order = sorted(range(len(questions)), key=shapes.__getitem__)
    alike = [list(group) for _, group in groupby(order, key=shapes.__getitem__)]
    room = [batch_size or _room(model, questions[indices[0]]) for indices in alike]
    return [indices[i : i + size] for indices, size in zip(alike, room) for i in range(0, len(indices), size)]


def _room(model: Any, question: Question) -> int:
    """Returns how many questions like this one a batch may hold."""
    if not isinstance(model, torch.nn.Module):
        return LARGEST_BATCH
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    hidden, vocabulary = (getattr(text, name, None) or 0 for name in ("hidden_size", "vocab_size"))
    length = question.inputs["input_ids"].shape[1]
    predicted = length - question.start + 1 if _keeps_last(model) else length
    pixels = sum(8 * tensor.nbytes for name, tensor in question.inputs.items() if name != "input_ids")
    bytes_each = length * hidden * PER_CHANNEL + predicted * vocabulary * PER_LOGIT + pixels
    free = free_memory(next(model.parameters()).device)
    return max(1, min(LARGEST_BATCH, free // SHARE // max(bytes_each, 1)))


def _keeps_last(model: torch.nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


@torch.no_grad()
def forward(model: torch.nn.Module, questions: Sequence[Question]) -> list[Tensor]:
    """Returns logits ``[A, V]`` at the positions that predict each answer, from one forward pass.

    Where memory is too small for the batch, it runs in halves.
    """
    try:
        return _forward(model, questions)
    except torch.OutOfMemoryError:
        if len(questions) == 1:
            raise
    middle = len(questions) // 2  # after the handler, which would hold the tensors of the failed pass
    return [*forward(model, questions[:middle]), *forward(model, questions[middle:])]


def kl_of_batching(model: torch.nn.Module, questions: Sequence[Question]) -> float:
    """Returns how much a model's predictions for one question change when another is in its batch: KL, in nats.

    Rounding makes it small. It is large where a library's kernel for several rows computes something else than that
    for one. It is 0 if no two questions can share a batch.
    """
    pair = next((batch for batch in batches_of(None, questions, 2) if len(batch) == 2), None)
    if pair is None:
        return 0.0
    alone, together = (
        log_softmax(forward(model, [questions[i] for i in batch])[0].float(), dim=-1) for batch in (pair[:1], pair)
    )
    return float(kl_div(together, alone, reduction="batchmean", log_target=True))


def _forward(model: torch.nn.Module, questions: Sequence[Question]) -> list[Tensor]:
    weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    batch: dict[str, Any] = {}
    for name in questions[0].inputs:
        tensor = torch.cat([question.inputs[name] for question in questions])
        batch[name] = pixels_as(tensor, weight.dtype).to(weight.device)
    length = batch["input_ids"].shape[1]
    if _keeps_last(model):
        batch["logits_to_keep"] = length - min(question.start for question in questions) + 1
    logits = model(**batch, use_cache=False).logits
    # Counted from the end, because the model may have kept only the last positions.
    return [row[question.start - 1 - length : question.stop - 1 - length] for row, question in zip(logits, questions)]


class KeptLogits(Sequence[Tensor]):
    """Logits of many questions, on the CPU: the first `limit` bytes in memory, the rest in a temporary file.

    Args:
        count: of the questions.
        limit: bytes to hold in memory.
    """

    def __init__(self, count: int, limit: int = IN_MEMORY):
        self._kept: list[Tensor | tuple[int, torch.dtype, torch.Size]] = [torch.empty(0)] * count
        self._file: BinaryIO | None = None
        self._room, self._end = limit, 0

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        kept = self._kept[index]
        if isinstance(kept, Tensor):
            return kept
        start, dtype, shape = kept
        assert self._file is not None
        self._file.seek(start)
        raw = bytearray(self._file.read(math.prod(shape) * dtype.itemsize))
        return torch.frombuffer(raw, dtype=dtype).reshape(shape)

    def __setitem__(self, index: int, logits: Tensor) -> None:
        logits = logits.detach().cpu().contiguous()
        if logits.nbytes <= self._room:
            self._room -= logits.nbytes
            self._kept[index] = logits.clone()  # not the whole batch's
            return
        if self._file is None:
            folder = temporary_folder()
            self._file = tempfile.TemporaryFile(prefix="qaig-logits-", dir=folder)  # noqa: SIM115 (it lives as I do)
        self._file.seek(self._end)
        self._file.write(logits.reshape(-1).view(torch.uint8).numpy().data)
        self._kept[index] = (self._end, logits.dtype, logits.shape)
        self._end += logits.nbytes
