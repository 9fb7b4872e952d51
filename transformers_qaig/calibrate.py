"""The conductor: every sample is a paused forward pass, blocks are treated in order, and what is chosen is packed."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .calibration import stages
from .calibration.block import OutputError, forward
from .calibration.capture import PausedForwards, around, resident
from .calibration.choices import Choices, Entries, packed, rounded
from .calibration.dataset import token_mask
from .calibration.doors import BlockCall
from .calibration.memory import out_of_memory_explained
from .calibration.resume import BlockStore
from .calibration.slices import ALL_REAL, install, merged, parts_of, together
from .calibration.stations import Station, find_stations
from .calibration.subblock import pieces_of
from .calibration.table import quantize_embedding
from .config import QAIGConfig
from .equalization.finder import GroupFinder
from .nn.linear import QAIGLinear, get_linear
from .plan import Coverage, Plan
from .recipes import RECIPES, Recipe
from .report.summary import BlockSummary, QuantizationReport
from .tables import stored_once

logger = logging.getLogger("transformers_qaig")

HELD_BACK = 4
"""Every fourth sample takes no part in the searches and judges them."""
SHOWN = 8
"""Samples whose λ is kept in the report."""


def calibrate(
    model: PreTrainedModel, plan: Plan, coverage: Coverage, samples: Sequence[Mapping[str, Any]], config: QAIGConfig
) -> QuantizationReport:
    """
    Quantize `model` in place, as `plan` and the recipe say: station after station, in the order in which they run.

    Args:
        model: in full precision, in evaluation mode, on the CPU.
        plan, coverage: from [`make_plan`].
        samples: model inputs, one conversation each; may be empty for a recipe that reads no data.
        config: recipe, seed, work folder, calibration device.

    Returns:
        what was done.

    Raises:
        torch.OutOfMemoryError: the message says what would need less memory.
    """
    start = time.perf_counter()
    recipe = RECIPES[config.recipe]
    device = config.calibration_device or torch.accelerator.current_accelerator(check_available=True)
    masks = [token_mask(sample) for sample in samples]
    report = QuantizationReport(config.recipe, coverage, len(samples), int(sum(mask.sum() for mask in masks)))
    tools = Tools(recipe, GroupFinder(model, config.seed), BlockStore(config, plan, samples), config)
    if device is not None:
        samples = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in sample.items()} for sample in samples]
    with out_of_memory_explained("in the first forward passes", device, report):
        stations, unreached = find_stations(model, stored_once(model, coverage.outside), samples, device)
    doors = [station.module for station in stations]
    with (
        around(model, doors, device if samples else None),
        PausedForwards(model, doors, samples, door_device="cpu") as full,
        PausedForwards(model, doors, samples, door_device="cpu") as quantized,
        tqdm(stations, desc=f"Quantizing ({config.recipe})", unit="block") as bar,
    ):
        for index, station in enumerate(bar):

            def go_on(sample: int, output: Any, output_q: Any) -> None:
                full.resume(sample, output)
                quantized.resume(sample, output_q)

            last = station is stations[-1]  # what follows it is not needed
            with out_of_memory_explained(f"at {station.path}", device, report), resident(station.module, device):
                calls, calls_q = full.waiting(index), quantized.waiting(index)
                report.bytes_per_sample = max(report.bytes_per_sample, full.nbytes() / max(len(samples), 1))
                seen = masks if station.reads_text else [ALL_REAL] * len(masks)
                summary = quantize_station(model, station, plan, calls, calls_q, seen, tools, None if last else go_on)
            report.blocks.append(summary)
            bar.set_postfix(error=f"{summary.error:.2e}")
    for station in unreached:
        logger.warning("%s: runs several times in a forward pass, or never; rounded without data.", station.path)
        report.blocks.append(quantize_station(model, station, plan, {}, {}, [], tools))
    report.seconds = time.perf_counter() - start
    return report


class Tools(NamedTuple):
    """What stays the same from station to station."""

    recipe: Recipe
    finder: GroupFinder
    store: BlockStore
    config: QAIGConfig


def quantize_station(
    model: PreTrainedModel,
    station: Station,
    plan: Plan,
    calls: Mapping[int, BlockCall],
    calls_q: Mapping[int, BlockCall],
    masks: Sequence[Tensor],
    tools: Tools,
    go_on: Callable[[int, Any, Any], None] | None = None,
) -> BlockSummary:
    """
    Quantize one station in place, and let the samples that wait there go on, if there is somewhere to go:
    `go_on(sample, output, output_q)`.

    The other arguments are as in [`choose`].
    """
    start, recipe, store = time.perf_counter(), tools.recipe, tools.store
    parts = parts_of(station, plan)
    for part in parts:
        if isinstance(part.block, nn.Embedding):
            part.result = quantize_embedding(part.block, part.entries[""], recipe)
            continue
        part.result, part.summary = store.load(part.path, part.block, part.entries) or quantize_block(
            part.block, part.path, part.entries, calls, calls_q, masks, recipe, tools.finder, tools.config.seed
        )
        for module in part.result.modules():
            if isinstance(module, QAIGLinear):
                module.activation_bits = tools.config.activation_bits
    for sample, call in calls.items():
        call_q, outputs = calls_q[sample], []
        for part in parts:
            output, output_q = forward(part.block, call), forward(part.result, call_q)
            part.error.add(output_q, output, masks[sample])
            if go_on is not None:
                outputs.append((output, output_q))
        if go_on is not None:
            go_on(sample, *(together(rows) for rows in zip(*outputs)))
    for part in parts:
        store.check(part.summary, part.error.value)
        part.summary.error, part.summary.seconds = part.error.value, (time.perf_counter() - start) / len(parts)
        if not isinstance(part.block, nn.Embedding):
            store.save(part.path, part.result, part.block, part.summary)
    install(model, station, parts)
    return merged(station.path, parts)


def quantize_block(
    block: nn.Module,
    path: str,
    entries: Entries,
    calls: Mapping[int, BlockCall],
    calls_q: Mapping[int, BlockCall],
    masks: Sequence[Tensor],
    recipe: Recipe,
    finder: GroupFinder,
    seed: int = 0,
) -> tuple[nn.Module, BlockSummary]:
    """
    The packed block, and what was chosen for it. Arguments as in [`choose`].
    """
    if not entries:
        return copy.deepcopy(block), BlockSummary(path)
    choices, summary = choose(block, path, entries, calls, calls_q, masks, recipe, finder, seed)
    return packed(in_float32(block), choices, dtype_of(block, entries)), summary


def choose(
    block: nn.Module,
    path: str,
    entries: Entries,
    calls: Mapping[int, BlockCall],
    calls_q: Mapping[int, BlockCall],
    masks: Sequence[Tensor],
    recipe: Recipe,
    finder: GroupFinder,
    seed: int = 0,
) -> tuple[Choices, BlockSummary]:
    """
    One block: for each group of linears in order, token weights, equalization, clipping.

    Args:
        block: in full precision; not changed.
        path: where it is in the model.
        entries: linears to pack, at least one.
        calls, calls_q: what the block is called with, per sample, in the full-precision and in the quantized stream.
        masks: bool [B, T] per sample, True at real tokens.
        recipe: the stages.
        finder: finds the block's groups.
        seed: of what is random.

    Returns:
        what follows for the block's weights, and a summary of it.
    """
    summary, choices = BlockSummary(path), Choices(entries, recipe.include_zero)
    if not recipe.calibrates or not calls:
        return choices, summary
    dtype, original = dtype_of(block, entries), in_float32(block)

    judges = list(calls)[::HELD_BACK] if recipe.do_no_harm else []
    fitting = [sample for sample in calls if sample not in judges] or judges
    targets = {sample: forward(block, calls[sample]) for sample in judges}
    done: list[str] = []

    def harm(candidate: Choices) -> float:
        """Output error on the samples held back, with everything done so far rounded as `candidate` says."""
        trial, error = rounded(original, candidate, done, dtype), OutputError()
        for sample in judges:
            error.add(forward(trial, calls_q[sample]), targets[sample], masks[sample])
        return error.value

    example = calls[fitting[0]].to(next(block.parameters()).device)
    for group in finder.groups(block, example.args, example.kwargs):
        members = [name for name in group.linears if name in entries]
        if not members:
            continue
        so_far = rounded(original, choices, done, dtype)
        pieces = pieces_of(original, group, (block, so_far), (calls, calls_q), masks, fitting)
        done += members
        if not pieces:
            logger.warning("%s.%s: not every sample gets there; rounded to nearest.", path, members[0])
            continue
        stages.weigh_tokens(original, group, choices, pieces, recipe, dtype, seed)
        if recipe.token_weights != "uniform":
            summary.importance[group.module] = {s: w for p in pieces for s, w in p.importance().items() if s < SHOWN}

        level = harm(choices) if judges else float("inf")
        for stage in (stages.equalize, stages.clip):
            candidate = stage(original, group, choices, pieces, recipe, dtype, finder.foldable(block, group))
            if candidate is choices:
                continue
            new_level = harm(candidate) if judges else float("-inf")
            what = f"{stage.__name__} {', '.join(members)}"
            (summary.kept if new_level < level else summary.undone).append(what)
            if new_level < level:
                choices, level = candidate, new_level
    return choices, summary


def in_float32(block: nn.Module) -> nn.Module:
    """A frozen fp32 copy of the block."""
    return copy.deepcopy(block).float().requires_grad_(False)


def dtype_of(block: nn.Module, entries: Entries) -> torch.dtype:
    """What the linears to pack are stored in, and so the dtype of their scales."""
    return next(get_linear(block, name).weight.dtype for name in entries)
