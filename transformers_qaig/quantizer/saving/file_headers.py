"""Counts the headers of a model's files, which list its tensors, so that a predicted size is the file's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...loading.skeleton import packed_skeleton
from ...loading.unused_tensors import UnusedTensor
from ...plan.allocate import Options, schemes_of
from ...plan.coverage import FILE_HEADERS, Coverage, PartSize
from .state_dict import checkpoint_tensors
from .trial import saved_names

LENGTH_BYTES, ALIGNMENT = 8, 8
"""safetensors writes the header's length first, and pads it."""
DTYPES = (
    *("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I16", "U16", "F16", "BF16"),
    *("I32", "U32", "F32", "C64", "F64", "I64", "U64"),
)
"""In the reverse of the order in which it stores tensors."""


def count_headers(
    coverage: Coverage,
    model: PreTrainedModel,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    files: Sequence[str] = (),
    before: int = 0,
) -> None:
    """Adds the headers to `coverage`: those of `files` before, that of one file with all tensors after.

    Args:
        coverage: of a plan.
        model: before it is packed.
        tensors: what will be saved, from [`checkpoint_tensors`] of a model that is packed so; may be on meta.
        metadata: of the file, from there, too.
        files: those the model is loaded from.
        before: bytes that may come before a tensor besides, which its offset counts.
    """
    names = saved_names(model, tensors, files)
    named = {names[name]: tensor for name, tensor in tensors.items()}
    after = header_bytes(named, {"format": "pt", **metadata}, before)
    coverage.parts[FILE_HEADERS] = PartSize(8 * sum(map(_stored_header_bytes, files)), 8 * after)


def predict_headers(
    coverage: Coverage,
    model: PreTrainedModel,
    options: Options,
    files: Sequence[str] = (),
    unused: Sequence[UnusedTensor] = (),
) -> None:
    """Does so before widths are chosen. The header after is at least as long as that of any choice.

    A packed weight has more tensors than one that stays as it is. Offsets are as long as they can become.
    """
    plan = coverage.plan_of({path: schemes_of(choices)[-1] for path, choices in options.items()})
    tensors, metadata = checkpoint_tensors(packed_skeleton(model, plan), plan, unused)
    count_headers(coverage, model, tensors, metadata, files, before=coverage.whole.full // 8)


def header_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], before: int = 0) -> int:
    """Computes the bytes of a safetensors file before its first tensor's data.

    The format is described at https://github.com/huggingface/safetensors#format.

    Args:
        tensors: by name; may be on the meta device.
        metadata: of the file.
        before: added to every offset.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = before
    dtypes = {name: _dtype(tensor.dtype) for name, tensor in tensors.items()}
    for name in sorted(tensors, key=lambda name: (-_rank(dtypes[name]), name)):
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": dtypes[name], "shape": list(tensor.shape), "data_offsets": [start, end]}
    length = len(json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode())
    return LENGTH_BYTES + -(-length // ALIGNMENT) * ALIGNMENT


def _dtype(dtype: torch.dtype) -> str:
    """Returns the name in the file: `F32`, `BF16`, `I32`, `BOOL`, `F8_E4M3`."""
    kind, bits = str(dtype).removeprefix("torch."), 8 * dtype.itemsize
    if dtype is torch.bool:
        return "BOOL"
    if kind.startswith("float8_"):
        return f"F8_{kind.removeprefix('float8_').upper().removesuffix('FN').removesuffix('FNU')}"
    return f"{'BF' if kind.startswith('bfloat') else kind[0].upper()}{bits}"


def _rank(dtype: str) -> int:
    return DTYPES.index(dtype) if dtype in DTYPES else 0


def _stored_header_bytes(file: str) -> int:
    """Returns the bytes of a safetensors file before its first tensor; 0 for another kind of file."""
    if Path(file).suffix != ".safetensors":
        return 0
    with suppress(OSError), open(file, "rb") as stored:  # the loader reports what is wrong with it
        return LENGTH_BYTES + int.from_bytes(stored.read(LENGTH_BYTES), "little")
    return 0
