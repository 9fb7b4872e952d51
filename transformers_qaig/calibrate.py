"""The conductor: every sample is a paused forward pass, blocks are treated in order, and what is chosen is packed."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .calibration.block import OutputError, first_tensor, forward, install
from .calibration.capture import PausedForwards, around, resident
from .calibration.choices import Choices, Entries, folded, packed, rounded
from .calibration.dataset import token_mask
from .calibration.doors import BlockCall
from .calibration.inputs import picture_masks
from .calibration.learning import BlockLearner
from .calibration.resume import BlockStore
from .calibration.stages import Site, Stage, clip, compensate, equalize
from .calibration.subblock import mask_for, pieces_of
from .calibration.weighing import Weigher, given_weights
from .config import QAIGConfig
from .equalization.finder import GroupFinder
from .nn.linear import QAIGLinear, get_linear
from .plan import Coverage, Plan, find_blocks
from .recipes import Recipe, recipe_of
from .report.summary import BlockSummary, QuantizationReport

logger = logging.getLogger("transformers_qaig")

HELD_BACK = 4
"""Every fourth sample takes no part in the searches and judges them."""
SHOWN = 8
"""Samples whose λ is kept in the report."""


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
        plan, coverage: from [`make_plan`].
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
                for module in result.modules():
                    if isinstance(module, QAIGLinear):
                        module.activation_bits = config.activation_bits
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
        weigher: of tokens; None makes one for this block alone.
        activation_bits: 8 if the packed linears will round their inputs.

    Returns:
        what follows for the block's weights, and a summary of it.
    """
    summary, choices = BlockSummary(path), Choices(entries, recipe.include_zero)
    if not recipe.calibrates or not calls:
        return choices, summary
    weigher = weigher or Weigher(recipe, seed)
    searched = weigher.calls
    dtype, block_32 = dtype_of(block, entries), in_float32(block)
    judges = list(calls)[::HELD_BACK] if recipe.do_no_harm else []
    fitting = [sample for sample in calls if sample not in judges] or judges
    targets = {sample: forward(block, calls[sample]) for sample in judges}
    example = calls[fitting[0]].to(next(block.parameters()).device)
    groups = finder.groups(block, example.args, example.kwargs)

    for stage_list in passes(recipe):
        # Scales of an earlier pass are folded: they are part of the block that this pass sees.
        original = folded(block_32, choices)
        earlier, choices = choices, Choices(entries, recipe.include_zero)
        full = copy.deepcopy(original).to(dtype) if earlier.scales else block
        done: list[str] = []

        def harm(candidate: Choices, original: nn.Module = original, done: list[str] = done) -> float:
            """Output error on the samples held back, with everything done so far rounded as `candidate` says."""
            trial, error = rounded(original, candidate, done, dtype), OutputError()
            for sample in judges:
                error.add(forward(trial, calls_q[sample]), targets[sample], masks[sample])
            return error.value

        for group in groups:
            members = [name for name in group.linears if name in entries]
            if not members:
                continue
            so_far = rounded(original, choices, done, dtype)
            pieces = pieces_of(original, group, (full, so_far), (calls, calls_q), masks, fitting)
            done += members
            foldable = finder.foldable(block, group)
            site = Site(original, group, members, pieces, recipe, dtype, foldable, activation_bits)
            if not site.pieces:
                logger.warning("%s.%s: not every sample gets there; rounded to nearest.", path, members[0])
                continue
            weigher.weigh(site, choices)
            if recipe.token_weights != "uniform":
                summary.importance[group.module] = {
                    s: w for p in site.pieces for s, w in p.importance().items() if s < SHOWN
                }
            level = harm(choices) if judges else float("inf")
            for stage in stage_list:
                candidate = stage(site, choices)
                if candidate is choices:
                    continue
                new_level = harm(candidate) if judges else float("-inf")
                what = f"{stage.__name__} {', '.join(members)}"
                (summary.kept if new_level < level else summary.undone).append(what)
                if new_level < level:
                    if stage is compensate and judges and recipe.rounding == "gptq":
                        # The judges have judged: now their tokens count too.
                        held = pieces_of(original, group, (full, so_far), (calls, calls_q), masks, judges)
                        more = replace(site, pieces=held)
                        weigher.weigh(more, choices)
                        candidate = stage(replace(site, pieces=[*site.pieces, *held]), choices)
                    choices, level = candidate, new_level
        choices = choices.after(earlier)
    summary.searches = weigher.calls - searched
    if recipe.rounding == "learned" and judges:
        targets = {sample: first_tensor(forward(block, call)).cpu() for sample, call in calls.items()}
        weights = {s: mask_for(masks[s], target).float() for s, target in targets.items()}
        learner = BlockLearner(block_32, calls_q, targets, weights, judges, recipe.steps, seed, dtype)
        around_them = [
            name
            for name, parameter in block.named_parameters()
            if parameter.ndim == 1 and parameter.is_floating_point() and not finder.is_shared(parameter)
        ]
        choices, found = learner.rounding(choices)
        (summary.kept if found.best < found.start else summary.undone).append("learned rounding")
        choices, found = learner.scales(choices, around_them)
        (summary.kept if found.best < found.start else summary.undone).append("learned scales")
    return choices, summary


def passes(recipe: Recipe) -> list[tuple[Stage, ...]]:
    """
    The stages of each pass over the block's groups. Rounding that is not to nearest comes in a pass of its own: its
    codes are for weights that no later fold may change.
    """
    if recipe.rounding == "nearest":
        return [(equalize, clip)]
    return [(equalize,), (compensate,)] if recipe.equalization != "none" else [(compensate,)]


def in_float32(block: nn.Module) -> nn.Module:
    """A frozen fp32 copy of the block."""
    return copy.deepcopy(block).float().requires_grad_(False)


def dtype_of(block: nn.Module, entries: Entries) -> torch.dtype:
    """What the linears to pack are stored in, and so the dtype of their scales."""
    return next(get_linear(block, name).weight.dtype for name in entries)
