"""Learned rounding of a whole block: what the conductor knows about samples, brought to `rounding.learned`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..rounding.learned import Learned, Start, learn
from .block import first_tensor
from .choices import Choices, folded, set_weight
from .doors import BlockCall, map_tensors

BATCH = 8
"""Samples per step."""


def learn_block(
    original: nn.Module,
    choices: Choices,
    calls: Mapping[int, BlockCall],
    targets: Mapping[int, Tensor],
    weights: Mapping[int, Tensor],
    judges: Sequence[int],
    *,
    steps: int,
    dtype: torch.dtype,
    seed: int,
) -> tuple[Choices, Learned]:
    """
    The choices with every rounding learned, so that Σ λ ‖output - target‖² of the block falls; on the judges' samples
    it is never more than before.

    Args:
        original: the block in fp32; not changed.
        choices: scales, and roundings to start from, of its linears.
        calls: what the block is called with in the quantized stream, per sample.
        targets: hidden states [B, T, C] that it gives in the full-precision stream, per sample.
        weights: λ fp32 [B, T] per sample, zero at padding.
        judges: samples that are not learned from.
        steps, seed: of the learning; each step draws `BATCH` samples.
        dtype: of the stored scales.
    """
    block = folded(original, choices)
    device = next(block.parameters()).device
    starts = {}
    for name in choices.entries:
        weight = choices.weight(block, name)
        set_weight(block, choices, name, weight)
        rounding = choices.rounding(name, weight, dtype)
        source, grid = weight if rounding.source is None else rounding.source, rounding.grid
        stretch = grid.grouped(source) * (grid.scale / grid.step).unsqueeze(-1)  # the same codes on a grid without gain
        starts[name] = Start(stretch.reshape(source.shape), replace(grid, step=grid.scale), dtype)
    learners = [sample for sample in calls if sample not in judges] or list(judges)
    power = sum(float((weights[s].unsqueeze(-1) * targets[s].float().square()).sum()) for s in calls)
    mass = sum(float(weights[s].sum()) for s in calls)

    def loss(dense: Mapping[str, Tensor], sample: int) -> Tensor:
        """Σ λ ‖output - target‖² of one sample, in units of the mean ‖target‖² of a token."""
        args, kwargs = map_tensors(
            lambda t: t.to(device, torch.float32) if t.is_floating_point() else t.to(device),
            (calls[sample].args, calls[sample].kwargs),
        )
        output = first_tensor(
            torch.func.functional_call(block, {f"{name}.weight": w for name, w in dense.items()}, args, kwargs)
        )
        error = (output - targets[sample].to(device, torch.float32)).square().sum(-1)
        return (error * weights[sample].to(device)).sum() / (power / mass)

    generator = torch.Generator().manual_seed(seed)

    def batch_loss(dense: Mapping[str, Tensor], step: int) -> float:
        total, count = 0.0, 0.0
        for index in torch.randperm(len(learners), generator=generator)[:BATCH].tolist():
            value = loss(dense, learners[index])
            value.backward()
            total, count = total + float(value), count + float(weights[learners[index]].sum())
        bar.update()
        bar.set_postfix(loss=f"{total / count:.2e}")
        return total / count

    def judge(dense: Mapping[str, Tensor]) -> float:
        return sum(float(loss(dense, s)) for s in judges) / sum(float(weights[s].sum()) for s in judges)

    with tqdm(total=steps, desc="Learning", unit="step", leave=False) as bar:
        found = learn(starts, batch_loss, judge, steps=steps)
    return choices.with_roundings(found.roundings), found
