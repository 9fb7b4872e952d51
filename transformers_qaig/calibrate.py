"""The conductor: every sample is a paused forward pass, blocks are treated in order, and what is chosen is packed."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .calibration.block import OutputError, forward, install
from .calibration.capture import PausedForwards, around, resident
from .calibration.choices import Choices, Entries, packed
from .calibration.dataset import token_mask
from .calibration.doors import BlockCall
from .calibration.inputs import picture_masks
from .calibration.resume import BlockStore
from .calibration.treatment import Treatment, dtype_of, in_float32
from .calibration.weighing import Weigher, given_weights
from .config import QAIGConfig
from .equalization.finder import GroupFinder
from .nn.hadamard import Rotation
from .nn.linear import QAIGLinear
from .plan import Coverage, Plan, find_blocks
from .recipes import Recipe, recipe_of
from .report.summary import BlockSummary, QuantizationReport

logger = logging.getLogger("transformers_qaig")


def calibrate(
    model: nn.Module,
    plan: Plan,
    coverage: Coverage,
    samples: Sequence[Mapping[str, Any]],
    config: QAIGConfig,
    answers: Sequence[Tensor] | None = None,
) -> QuantizationReport:
    """
    Quantize the blocks of `model` in place, as `plan` and the recipe say.

    Args:
        model: in full precision, in evaluation mode, on the CPU.
        plan, coverage: from [`make_plan`]; a rotation that was not kept is taken out of the plan.
        samples: model inputs, one conversation each; may be empty for a recipe that reads no data.
        config: recipe, seed, work folder, calibration device.
        answers: bool [B, T] per sample, True at its answers' tokens, for recipes that ask for them; None: at all.

    Returns:
        what was done.
    """
    start = time.perf_counter()
    recipe, blocks = recipe_of(config.recipe, config.stages), find_blocks(model)
    device = config.calibration_device or torch.accelerator.current_accelerator(check_available=True)
    masks = [token_mask(sample) for sample in samples]
    report = QuantizationReport(config.recipe, coverage, len(samples), int(sum(mask.sum() for mask in masks)))
    store = BlockStore(config, plan, samples)
    finder = GroupFinder(model, config.seed)
    doors = list(blocks.values())
    if device is not None:
        samples = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in sample.items()} for sample in samples]
    given = given_weights(model, doors, samples, masks, answers or masks, picture_masks(model, samples), recipe, device)
    weigher = Weigher(recipe, config.seed, given)
    with (
        around(model, doors, device if samples else None),
        PausedForwards(model, doors, samples, door_device="cpu") as full,
        PausedForwards(model, doors, samples, door_device="cpu") as quantized,
        tqdm(blocks.items(), desc=f"Quantizing ({config.recipe})", unit="block") as bar,
    ):
        for index, (path, block) in enumerate(bar):
            block_start = time.perf_counter()
            weigher.block, weigher.calls = index, sum(block.searches for block in report.blocks)
            entries = {
                name.removeprefix(path + "."): entry for name, entry in plan.items() if name.startswith(path + ".")
            }
            calls, calls_q = full.waiting(index), quantized.waiting(index)
            report.bytes_per_sample = max(report.bytes_per_sample, full.nbytes() / max(len(samples), 1))
            with resident(block, device):
                result, summary = store.load(path, block, entries) or quantize_block(
                    block,
                    path,
                    entries,
                    calls,
                    calls_q,
                    masks,
                    recipe,
                    finder,
                    config.seed,
                    weigher,
                    config.activation_bits,
                )
                for name, module in result.named_modules():
                    if isinstance(module, QAIGLinear):
                        module.activation_bits = config.activation_bits
                        _record(module, plan[f"{path}.{name}"])
                error = OutputError()
                for sample, call in calls.items():
                    output, output_q = forward(block, call), forward(result, calls_q[sample])
                    error.add(output_q, output, masks[sample])
                    if block is not doors[-1]:  # what follows the last block is not needed
                        full.resume(sample, output)
                        quantized.resume(sample, output_q)
                store.check(summary, error.value)
                summary.error, summary.seconds = error.value, time.perf_counter() - block_start
                store.save(path, result, block, summary)
                install(block, result)
            report.blocks.append(summary)
            bar.set_postfix(error=f"{summary.error:.2e}")
    report.seconds = time.perf_counter() - start
    return report


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
