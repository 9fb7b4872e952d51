"""Finds the targets, at which forward passes stop, in execution order, and divides them into chunks.

Targets are embeddings, a tower's blocks, projector, decoder blocks and head. A chunk is quantized at once: a block is
one, and so are some rows of a single linear.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from graphlib import CycleError, TopologicalSorter
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..formats.scheme import Plan, inside
from ..rounding.packed_layers import ROWS_PER_CHUNK
from ..structure import ModelStructure, is_block_list
from ..utils.logging import get_logger
from .offload import offloaded

logger = get_logger(__name__)

Sample = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """A module that is quantized as a whole, in one stop of every forward pass that calls it.

    Attributes:
        path: in the model.
        module: a block, another composite module, a single linear, or embeddings.
        token_input: name of the model's input whose tokens it sees, so that the samples' masks hold for them:
            `input_ids`, or `decoder_input_ids` behind the encoder of a text or a picture; "" for the tokens of a
            picture.
    """

    path: str
    module: nn.Module
    token_input: str


def find_targets(
    model: nn.Module,
    structure: ModelStructure,
    outside: Iterable[str],
    samples: Sequence[Sample],
    device: torch.device | str | None,
) -> tuple[list[Target], list[Target]]:
    """Finds the targets in the order in which they run.

    The blocks of one list run in its order. With several lists, or weights to pack outside of them, the order is taken
    from forward passes: one of the largest sample of each kind (with and without images, say).

    Args:
        model: in full precision; run where the order must be seen.
        structure: of the model.
        outside: paths of the weights to pack outside the decoder's blocks.
        samples: model inputs, on the CPU; may be empty, then no order is known or needed.
        device: where the targets compute, one at a time.

    Returns:
        the targets, and those that no forward pass can stop at: they are called several times in one pass, or never.
    """
    blocks = {path: Target(path, block, structure.token_inputs[path]) for path, block in structure.blocks.items()}
    candidates = {path: module for wanted in _roots(model, outside) for path, module in _candidates(*wanted)}
    text = {id(found.module) for found in (structure.embeddings, structure.head)}
    others = {
        path: Target(path, module, structure.answer_input if id(module) in text else "")
        for path, module in candidates.items()
    }
    lists = list(_lists(blocks))
    if not samples or (not others and len(lists) == 1):
        return [*blocks.values(), *others.values()], []
    everything = {**blocks, **others}
    runs = _runs(model, everything, _one_of_each_kind(samples), device)
    counts = [Counter(run) for run in runs]
    uncalibrated = [path for path in everything if any(c[path] > 1 for c in counts)]
    uncalibrated += [path for path in others if not any(path in c for c in counts)]
    order = TopologicalSorter[str]()
    for run in [*lists, *runs]:
        kept = [path for path in run if path not in uncalibrated]
        for before, after in pairwise(kept):
            order.add(after, before)
        for path in kept:
            order.add(path)
    try:
        found = list(order.static_order())
    except CycleError:  # kinds of samples disagree: only the decoder's blocks can be relied upon
        found, uncalibrated = list(blocks), list(others)
    return [everything[path] for path in found], [everything[path] for path in uncalibrated]


def _lists(blocks: Iterable[str]) -> Iterator[list[str]]:
    """Yields the paths of the blocks of each list."""
    for _, paths in groupby(blocks, key=lambda path: path.rpartition(".")[0]):
        yield list(paths)


def _roots(model: nn.Module, outside: Iterable[str]) -> Iterator[tuple[str, nn.Module, list[str]]]:
    """Yields the children of the model's root that hold the weights, with the paths of those."""
    paths = list(outside)
    for name, child in model.named_children():
        inside = [path for path in paths if f"{path}.".startswith(f"{name}.")]
        if inside:
            yield name, child, inside


def _candidates(path: str, module: nn.Module, weights: list[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yields the largest modules that hold some of `weights`, and no list of blocks or decoder beside them."""
    if isinstance(module, (nn.Linear, nn.Embedding)) or not _is_divided(module, path, weights):
        yield path, module
        return
    for name, child in module.named_children():
        inside = [weight for weight in weights if f"{weight}.".startswith(f"{path}.{name}.")]
        if inside:
            yield from _candidates(f"{path}.{name}", child, inside)


def _is_divided(module: nn.Module, path: str, weights: list[str]) -> bool:
    """Whether a list of blocks is inside, or embeddings are among the weights: both are targets of their own."""
    return any(is_block_list(part) for part in module.modules()) or any(
        isinstance(module.get_submodule(weight[len(path) + 1 :]), nn.Embedding) for weight in weights
    )


def _one_of_each_kind(samples: Sequence[Sample]) -> list[Sample]:
    """Returns the largest sample of every set of inputs."""
    largest: dict[frozenset[str], Sample] = {}
    for sample in samples:
        kind = frozenset(key for key, value in sample.items() if value is not None)
        if kind not in largest or _elements(sample) > _elements(largest[kind]):
            largest[kind] = sample
    return list(largest.values())


def _elements(sample: Sample) -> int:
    return sum(value.numel() for value in sample.values() if isinstance(value, Tensor))


@torch.no_grad()
def _runs(
    model: nn.Module, targets: Mapping[str, Target], samples: Sequence[Sample], device: torch.device | str | None
) -> list[list[str]]:
    """Runs a forward pass for each sample, and returns the targets' paths in the order in which it calls them."""
    called, runs = list[str](), list[list[str]]()
    with offloaded(model, [target.module for target in targets.values()], device) as offload:
        for path, target in targets.items():
            offload.watch(target.module, stays=False, on_call=partial(called.append, path))
        for sample in samples:
            called.clear()
            model(**sample, use_cache=False)
            runs.append([*called])
    return runs


class RowChunk(NamedTuple):
    """A part of a target that is quantized at once.

    Attributes:
        path: of the target; with the first row's number if it is some rows of a linear.
        module: a block, some rows of a linear, or embeddings; in full precision.
        schemes: its linears to pack; those of embeddings under "".
    """

    path: str
    module: nn.Module
    schemes: Plan

    @property
    def rows(self) -> str:
        """The rows of the linear, for the report."""
        return f"rows from {self.path.rpartition('.')[2]}"


class LinearRows(nn.Module):
    """A block of one linear, which has some rows of the linear in the model."""

    def __init__(self, linear: nn.Linear, start: int, stop: int):
        super().__init__()
        self.linear = nn.Linear(linear.in_features, stop - start, linear.bias is not None, device="meta")
        for name, parameter in linear.named_parameters():
            setattr(self.linear, name, nn.Parameter(parameter.data[start:stop], requires_grad=False))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Multiplies the input by these rows."""
        return self.linear(*args, **kwargs)


def row_chunks_of(target: Target, plan: Plan) -> list[RowChunk]:
    """Returns the chunks of a target.

    Those of one linear are validated one by one, but share one input. So they are not offered a rotation that the plan
    may have for it.
    """
    path, module = target.path, target.module
    if isinstance(module, nn.Linear):
        rows, scheme = module.out_features, replace(plan[path], rotation=None)
        return [
            RowChunk(
                f"{path}.{start}", LinearRows(module, start, min(start + ROWS_PER_CHUNK, rows)), {"linear": scheme}
            )
            for start in range(0, rows, ROWS_PER_CHUNK)
        ]
    if isinstance(module, nn.Embedding):
        return [RowChunk(path, module, {"": plan[path]})]
    return [RowChunk(path, module, inside(plan, path))]


def concat_outputs(outputs: Sequence[Any]) -> Any:
    """Joins the outputs of a target's chunks."""
    return outputs[0] if len(outputs) == 1 else torch.cat(list(outputs), dim=-1)
