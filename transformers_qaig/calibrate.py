"""The conductor: every sample is a paused forward pass, blocks are treated in order, and what is chosen is packed."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm

from .calibration import stages
from .calibration.capture import PausedForwards, around, resident
from .calibration.choices import Choices, Entries, packed, rounded
from .calibration.dataset import token_mask
from .calibration.doors import BlockCall
from .calibration.resume import BlockStore
from .calibration.subblock import mask_for, pieces_of
from .config import QAIGConfig
from .equalization.fold import Group
from .equalization.probe import find_groups
from .plan import Coverage, Plan, find_blocks
from .recipes import RECIPES, Recipe
from .report.summary import BlockSummary, QuantizationReport

logger = logging.getLogger("transformers_qaig")

HELD_BACK = 4
"""Every fourth sample takes no part in the searches and judges them."""
SHOWN = 8
"""Samples whose λ is kept in the report."""


def calibrate(
    model: nn.Module, plan: Plan, coverage: Coverage, samples: Sequence[Mapping[str, Any]], config: QAIGConfig
) -> QuantizationReport:
    """
    Quantize the blocks of `model` in place, as `plan` and the recipe say.

    Args:
        model: in full precision, in evaluation mode.
        plan, coverage: from [`make_plan`].
        samples: model inputs, one conversation each; may be empty for a recipe that reads no data.
        config: recipe, seed, work folder, calibration device.

    Returns:
        what was done.
    """
    start = time.perf_counter()
    recipe = RECIPES[config.recipe]
    blocks = find_blocks(model)
    masks = [token_mask(sample) for sample in samples]
    report = QuantizationReport(config.recipe, coverage, coverage.bits_per_weight, len(samples))
    report.num_tokens = int(sum(mask.sum() for mask in masks))
    store = BlockStore(config, plan, samples)
    probe = GroupFinder(model, config.seed)
    doors = list(blocks.values())
    device = config.calibration_device or torch.accelerator.current_accelerator()
    if device is not None:
        samples = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in sample.items()} for sample in samples]
    with (
        around(model, doors, device if samples else None),
        PausedForwards(model, doors, samples, door_device="cpu") as full,
        PausedForwards(model, doors, samples, door_device="cpu") as quantized,
        tqdm(blocks.items(), desc=f"Quantizing ({config.recipe})", unit="block") as bar,
    ):
        for index, (path, block) in enumerate(bar):
            block_start = time.perf_counter()
            entries = {
                name.removeprefix(path + "."): entry for name, entry in plan.items() if name.startswith(path + ".")
            }
            calls, calls_q = full.waiting(index), quantized.waiting(index)
            if index == 0:
                report.bytes_per_sample = full.nbytes() / max(len(samples), 1)
            with resident(block, device):
                result, summary = store.load(path, block, entries) or quantize_block(
                    block, path, entries, calls, calls_q, masks, recipe, probe
                )
                error = Ratio()
                for sample, call in calls.items():
                    output = forward(block, call)
                    output_q = forward(result, calls_q[sample])
                    error.add(first_tensor(output_q), first_tensor(output), masks[sample])
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
    probe: GroupFinder,
) -> tuple[nn.Module, BlockSummary]:
    """
    One block: for each group of linears in order, token weights, equalization, clipping; then everything is packed.

    Args:
        block: in full precision; not changed.
        path: where it is in the model.
        entries: linears to pack.
        calls, calls_q: what the block is called with, per sample, in the full-precision and in the quantized stream.
        masks: bool [B, T] per sample, True at real tokens.
        recipe: the stages.
        probe: finds the block's groups.

    Returns:
        the packed block, and what was chosen.
    """
    dtype = next(block.get_submodule(name).weight.dtype for name in entries)
    original = copy.deepcopy(block).float().requires_grad_(False)
    choices, summary = Choices(entries, recipe.include_zero), BlockSummary(path)
    if not recipe.calibrates or not calls:
        return packed(original, choices, dtype), summary

    judges = [s for s in calls if s % HELD_BACK == 0] if recipe.do_no_harm and len(calls) >= HELD_BACK else []
    fitting = [s for s in calls if s not in judges]
    targets = {s: first_tensor(forward(block, calls[s])) for s in judges}
    done: list[str] = []

    def harm(candidate: Choices) -> float:
        trial, error = rounded(original, candidate, done, dtype), Ratio()
        for s in judges:
            error.add(first_tensor(forward(trial, calls_q[s])), targets[s], masks[s])
        return error.value

    def settle(candidate: Choices, what: str) -> Choices:
        """Keep the candidate unless it must prove itself on held-back samples and does not."""
        if judges and not harm(candidate) < harm(choices):
            summary.undone.append(what)
            return choices
        summary.kept.append(what)
        return candidate

    for group in probe.groups(block, calls[fitting[0]]):
        members = [name for name in group.linears if name in entries]
        if not members:
            continue
        so_far = rounded(original, choices, done, dtype)
        pieces = pieces_of(original, group, (block, so_far), (calls, calls_q), masks, fitting)
        done += members
        if not pieces:
            logger.warning("%s.%s: not every sample gets there; rounded to nearest.", path, group.linears[0])
            continue
        stages.weigh_tokens(original, group, choices, pieces, recipe, dtype)
        summary.importance[group.module] = {s: w for p in pieces for s, w in p.importance().items() if s < SHOWN}

        if recipe.equalization and group.producer is not None and not probe.shares(block, group):
            scale = stages.equalize(original, group, choices, pieces, recipe, dtype)
            if scale is not None:
                choices = settle(choices.with_scale(group, scale), f"equalize {', '.join(members)}")
        if recipe.clipping:
            choices = settle(stages.clip(original, group, choices, pieces, dtype), f"clip {', '.join(members)}")
    return packed(original, choices, dtype), summary


class GroupFinder:
    """Finds the groups once per kind of block: same class, same linears, same shapes."""

    def __init__(self, model: nn.Module, seed: int):
        self.seed = seed
        self.found: dict[tuple, list[Group]] = {}
        owners: dict[int, int] = {}
        for module in model.modules():
            for parameter in module._parameters.values():
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        self._shared = {key for key, count in owners.items() if count > 1}

    def groups(self, block: nn.Module, call: BlockCall) -> list[Group]:
        shapes = tuple((name, tuple(p.shape)) for name, p in block.named_parameters())
        key = (type(block), shapes)
        if key not in self.found:
            self.found[key] = find_groups(block, call.args, call.kwargs, seed=self.seed)
        return self.found[key]

    def shares(self, block: nn.Module, group: Group) -> bool:
        """Whether a weight that the group's scale would be folded into is used elsewhere in the model too."""
        names = [*group.linears, *([group.producer] if group.producer else [])]
        return any(id(p) in self._shared for name in names for p in block.get_submodule(name).parameters())


@dataclass
class Ratio:
    """Σ ‖a - b‖² / Σ ‖b‖² over real tokens."""

    error: float = 0.0
    power: float = 0.0

    def add(self, a: Tensor, b: Tensor, mask: Tensor) -> None:
        mask = mask_for(mask, b)
        a, b = a[mask].float(), b[mask].float()
        self.error += float((a - b).square().sum())
        self.power += float(b.square().sum())

    @property
    def value(self) -> float:
        return self.error / self.power if self.power else float("nan")


def forward(block: nn.Module, call: BlockCall) -> Any:
    with torch.no_grad():
        call = call.to(next(block.parameters()).device)
        return block(*call.args, **call.kwargs)


def first_tensor(output: Any) -> Tensor:
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def install(block: nn.Module, result: nn.Module) -> None:
    """Move the packed block's contents into the model's own block object, which hooks and parents refer to."""
    device = next(block.parameters()).device
    for name, module in result.named_modules():
        if not isinstance(module, nn.Linear) and isinstance(block.get_submodule(name), nn.Linear):
            block.set_submodule(name, module)
    for name, parameter in result.named_parameters():
        target = block.get_parameter(name)
        if target is not parameter:
            target.data.copy_(parameter.data)
    block.to(device)
