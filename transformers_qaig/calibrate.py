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

from .calibration.block import forward
from .calibration.capture import PausedForwards, around, resident
from .calibration.choices import Choices, Entries, packed
from .calibration.dataset import token_mask
from .calibration.doors import BlockCall
from .calibration.inputs import picture_masks
from .calibration.memory import out_of_memory_explained
from .calibration.resume import BlockStore
from .calibration.slices import ALL_REAL, install, merged, parts_of, together
from .calibration.stations import Station, find_stations
from .calibration.table import quantize_embedding
from .calibration.treatment import Treatment, dtype_of, in_float32
from .calibration.weighing import Weigher, given_weights
from .config import QAIGConfig
from .equalization.finder import GroupFinder
from .nn.hadamard import Rotation
from .nn.linear import QAIGLinear
from .plan import Coverage, Plan
from .recipes import Recipe, recipe_of
from .report.summary import BlockSummary, QuantizationReport
from .structure import find_blocks
from .tables import stored_once

logger = logging.getLogger("transformers_qaig")


def calibrate(
    model: PreTrainedModel,
    plan: Plan,
    coverage: Coverage,
    samples: Sequence[Mapping[str, Any]],
    config: QAIGConfig,
    answers: Sequence[Tensor] | None = None,
) -> QuantizationReport:
    """
    Quantize `model` in place, as `plan` and the recipe say: station after station, in the order in which they run.

    Args:
        model: in full precision, in evaluation mode, on the CPU.
        plan, coverage: from [`make_plan`]; a rotation that was not kept is taken out of the plan.
        samples: model inputs, one conversation each; may be empty for a recipe that reads no data.
        config: recipe, seed, work folder, calibration device.
        answers: bool [B, T] per sample, True at its answers' tokens, for recipes that ask for them; None: at all.

    Returns:
        what was done.

    Raises:
        torch.OutOfMemoryError: the message says what would need less memory.
    """
    start = time.perf_counter()
    recipe = recipe_of(config.recipe, config.stages)
    device = config.calibration_device or torch.accelerator.current_accelerator(check_available=True)
    masks = [token_mask(sample) for sample in samples]
    report = QuantizationReport(config.recipe, coverage, len(samples), int(sum(mask.sum() for mask in masks)))
    store = BlockStore(config, plan, samples)
    if device is not None:
        samples = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in sample.items()} for sample in samples]
    with out_of_memory_explained("in the first forward passes", device, report):
        stations, unreached = find_stations(model, stored_once(model, coverage.outside), samples, device)
    doors = [station.module for station in stations]
    blocks = list(find_blocks(model).values())
    with out_of_memory_explained("in the first forward passes", device, report):
        seen = answers or masks, picture_masks(model, samples)
        given = given_weights(model, blocks, samples, masks, *seen, recipe, device)
    tools = Tools(recipe, GroupFinder(model, config.seed), store, config, Weigher(recipe, config.seed, given))
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
                real = masks if station.reads_text else [ALL_REAL] * len(masks)
                tools.weigher.block = next((i for i, block in enumerate(blocks) if block is station.module), None)
                tools.weigher.calls = sum(block.searches for block in report.blocks)
                summary = quantize_station(model, station, plan, calls, calls_q, real, tools, None if last else go_on)
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
    weigher: Weigher


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
    start, store, config = time.perf_counter(), tools.store, tools.config
    parts = parts_of(station, plan)
    for part in parts:
        if isinstance(part.block, nn.Embedding):
            part.result = quantize_embedding(part.block, part.entries[""], tools.recipe)
            continue
        part.result, part.summary = store.load(part.path, part.block, part.entries) or quantize_block(
            part.block, part.path, part.entries, calls, calls_q, masks, tools.recipe, tools.finder, config.seed,
            tools.weigher, config.activation_bits,
        )  # fmt: skip
        for name, module in part.result.named_modules():
            if isinstance(module, QAIGLinear):
                module.activation_bits = config.activation_bits
                _record(module, part.entries[name])
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
    weigher: Weigher | None = None,
    activation_bits: int = 16,
) -> tuple[nn.Module, BlockSummary]:
    """
    The packed block, and what was chosen for it. Arguments as in [`choose`].
    """
    if not entries:
        return copy.deepcopy(block), BlockSummary(path)
    choices, summary = choose(
        block, path, entries, calls, calls_q, masks, recipe, finder, seed, weigher, activation_bits
    )
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
    weigher: Weigher | None = None,
    activation_bits: int = 16,
) -> tuple[Choices, BlockSummary]:
    """
    What follows for the block's weights, and a summary of it. Arguments as in [`Treatment`]; there may be no calls, and
    without a `weigher` the block gets one of its own.
    """
    if not recipe.calibrates or not calls:
        rotations = {name: rotation for name, entry in entries.items() if (rotation := Rotation.of(entry))}
        return Choices(entries, recipe.include_zero, activation_bits).with_rotations(rotations), BlockSummary(path)
    weigher = weigher or Weigher(recipe, seed)
    treatment = Treatment(block, path, entries, calls, calls_q, masks, recipe, finder, seed, weigher, activation_bits)
    return treatment.choose(), treatment.summary


def _record(module: QAIGLinear, entry: dict[str, Any]) -> None:
    """Make the plan's entry say how the input is rotated."""
    entry.pop("rotation", None)
    if module.rotation is not None:
        entry["rotation"] = module.rotation._asdict()
