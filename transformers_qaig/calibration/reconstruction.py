"""Learning what a block becomes as a whole: what the conductor knows about samples, brought to `rounding.learned`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..execution.block_outputs import first_tensor
from ..execution.interceptor import LayerInputs, map_tensors
from ..rounding.learned import (
    Learnable,
    LearnableInit,
    LearnableRounding,
    LearnableScales,
    LearnableVector,
    Learned,
    learn,
)
from ..utils.logging import tqdm
from .decisions import BlockDecisions, folded, set_weight

BATCH = 8
"""Samples per step."""
ROUNDING_RATE = 3e-4
SCALE_RATE = 1e-3


@dataclass
class BlockReconstruction:
    """
    Lowers Σ λ ‖output - target‖² of a block; on the judges' samples it is never more than before.

    Attributes:
        original: the block in fp32; not changed.
        calls: what the block is called with in the quantized stream, per sample.
        targets: hidden states [B, T, C] that it gives in the full-precision stream, per sample.
        weights: λ fp32 [B, T] per sample, zero at padding.
        judges: samples that are not learned from.
        steps, seed: of the learning; each step draws `BATCH` samples.
        dtype: what scales are stored in.
    """

    original: nn.Module
    calls: Mapping[int, LayerInputs]
    targets: Mapping[int, Tensor]
    weights: Mapping[int, Tensor]
    judges: Sequence[int]
    steps: int
    seed: int
    dtype: torch.dtype

    def rounding(self, choices: BlockDecisions) -> tuple[BlockDecisions, Learned]:
        """The choices with the rounding of every linear learned."""
        block, soft = folded(self.original, choices), {}
        for name in choices.entries:
            weight = choices.weight(block, name)
            set_weight(block, choices, name, weight)
            rounding = choices.rounding(name, weight, self.dtype)
            source, grid = weight if rounding.source is None else rounding.source, rounding.grid
            stretch = grid.grouped(source) * (grid.scale / grid.step).unsqueeze(-1)  # the same codes without a gain
            soft[f"{name}.weight"] = LearnableRounding(
                LearnableInit(stretch.reshape(source.shape), replace(grid, step=grid.scale), self.dtype)
            )
        found = self._learn(block, soft, ROUNDING_RATE, "rounding")
        return choices.with_roundings({name: found.results[f"{name}.weight"] for name in choices.entries}), found

    def scales(self, choices: BlockDecisions, parameters: Mapping[str, torch.dtype]) -> tuple[BlockDecisions, Learned]:
        """
        The choices with the scales of every linear, and the block's `parameters`, learned; all codes stay.

        Args:
            choices: to start from.
            parameters: path → what it is stored in.
        """
        block = folded(self.original, choices)
        soft: dict[str, Learnable] = {}
        for name in choices.entries:
            weight = choices.weight(block, name)
            set_weight(block, choices, name, weight)
            soft[f"{name}.weight"] = LearnableScales(choices.rounding(name, weight, self.dtype), self.dtype)
        for name, dtype in parameters.items():
            soft[name] = LearnableVector(block.get_parameter(name).data, dtype)
        found = self._learn(block, soft, SCALE_RATE, "scales")
        roundings = {name: found.results[f"{name}.weight"] for name in choices.entries}
        changed = {name: found.results[name] for name in parameters}
        return replace(choices.with_roundings(roundings), parameters={**choices.parameters, **changed}), found

    def _learn(self, block: nn.Module, soft: Mapping[str, Learnable], rate: float, what: str) -> Learned:
        device = next(block.parameters()).device
        learners = [sample for sample in self.calls if sample not in self.judges] or list(self.judges)
        mass = {sample: float(weight.sum()) for sample, weight in self.weights.items()}
        power = sum(
            float((self.weights[s].unsqueeze(-1) * target.float().square()).sum()) for s, target in self.targets.items()
        )
        unit = power / sum(mass.values()) or 1.0  # mean ‖target‖² of a token

        def loss(tensors: Mapping[str, Tensor], sample: int) -> Tensor:
            args, kwargs = map_tensors(
                lambda t: t.to(device, torch.float32) if t.is_floating_point() else t.to(device),
                (self.calls[sample].args, self.calls[sample].kwargs),
            )
            output = first_tensor(torch.func.functional_call(block, dict(tensors), args, kwargs))
            error = (output - self.targets[sample].to(device, torch.float32)).square().sum(-1)
            return (error * self.weights[sample].to(device)).sum() / unit

        generator = torch.Generator().manual_seed(self.seed)

        def batch_loss(tensors: Mapping[str, Tensor], step: int) -> float:
            batch = [learners[i] for i in torch.randperm(len(learners), generator=generator)[:BATCH].tolist()]
            total = 0.0
            for sample in batch:
                value = loss(tensors, sample)
                value.backward()
                total += float(value.detach())
            mean = total / sum(mass[sample] for sample in batch)
            bar.update()
            bar.set_postfix(loss=f"{mean:.2e}")
            return mean

        def judge(tensors: Mapping[str, Tensor]) -> float:
            return sum(float(loss(tensors, s)) for s in self.judges) / sum(mass[s] for s in self.judges)

        with tqdm(total=self.steps, desc=f"Learning {what}", unit="step", leave=False) as bar:
            return learn(soft, batch_loss, judge, steps=self.steps, rate=rate)
