"""Learns the rounding and scales of a whole block, with `rounding.learned`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..distributed import ALONE, Ranks, Terms
from ..distributed.gradients import gradients_in_order
from ..execution.block_outputs import first_tensor
from ..execution.layer_inputs import LayerInputs, map_tensors, with_own_caches
from ..rounding.learned import (
    Keep,
    Learnable,
    LearnableInit,
    LearnableRounding,
    LearnableVector,
    Learned,
    in_memory,
    learn,
)
from ..rounding.learned_scales import LearnableScales
from ..rounding.quant_grid import QuantizedWeight
from ..utils.logging import tqdm
from .decisions import BlockDecisions, folded, set_weight

BATCH = 8
"""Samples per step."""
ROUNDING_RATE = 3e-4
SCALE_RATE = 1e-3


@dataclass
class BlockReconstruction:
    """Lowers Σ λ ‖output - target‖² of a block; the error on the validation samples never rises.

    Attributes:
        original: the block in fp32; not changed.
        calls: what the block is called with in the quantized model, per sample.
        targets: hidden states `[B, T, C]` that it gives in the full-precision model, per sample.
        weights: λ fp32 `[B, T]` per sample, zero at padding.
        validation: samples that are not learned from.
        steps: of the learning; each draws `BATCH` samples.
        seed: of the draw.
        dtype: what scales are stored in.
        samples: of all ranks, in order; those before are of this rank, except `validation`. None: all are here.
        ranks: that learn together, in the same steps.
        keepers: path of a linear → where what is learned of it is kept; in memory where it has none.
    """

    original: nn.Module
    calls: Mapping[int, LayerInputs]
    targets: Mapping[int, Tensor]
    weights: Mapping[int, Tensor]
    validation: Sequence[int]
    steps: int
    seed: int
    dtype: torch.dtype
    samples: Sequence[int] | None = None
    ranks: Ranks = ALONE
    keepers: Mapping[str, Keep] = field(default_factory=dict)

    def rounding(self, decisions: BlockDecisions) -> tuple[BlockDecisions, Learned]:
        """Returns the decisions so far with the rounding of every linear learned, and how the error fell."""
        block, soft = folded(self.original, decisions), dict[str, Learnable]()
        for name in decisions.schemes:
            weight = decisions.weight(block, name)
            rounding = self._where_it_is_learned(name, decisions.rounding(name, weight, self.dtype))
            grid = rounding.grid
            source = weight.to(grid.scale.device) if rounding.source is None else rounding.source
            stretch = grid.grouped(source) * (grid.scale / grid.encode_scale).unsqueeze(
                -1
            )  # the same codes without a gain
            start = LearnableInit(stretch.reshape(source.shape), replace(grid, encode_scale=grid.scale), self.dtype)
            soft[f"{name}.weight"] = LearnableRounding(start, self.keepers.get(name, in_memory))
            self._prepare(block, decisions, name, soft[f"{name}.weight"])
        found = self._learn(block, soft, ROUNDING_RATE, "rounding")
        return decisions.with_roundings({name: found.results[f"{name}.weight"] for name in decisions.schemes}), found

    def scales(
        self, decisions: BlockDecisions, parameters: Mapping[str, torch.dtype]
    ) -> tuple[BlockDecisions, Learned]:
        """Returns the decisions with the scales of every linear, and the block's `parameters`, learned; all codes stay.

        Args:
            decisions: to start from.
            parameters: path → what it is stored in.

        Returns:
            the decisions, and how the error fell.
        """
        block = folded(self.original, decisions)
        soft: dict[str, Learnable] = {}
        for name in decisions.schemes:
            weight = decisions.weight(block, name)
            rounding = self._where_it_is_learned(name, decisions.rounding(name, weight, self.dtype))
            soft[f"{name}.weight"] = LearnableScales(rounding, self.dtype, self.keepers.get(name, in_memory))
            self._prepare(block, decisions, name, soft[f"{name}.weight"])
        for name, dtype in parameters.items():
            soft[name] = LearnableVector(block.get_parameter(name).data, dtype)
        found = self._learn(block, soft, SCALE_RATE, "scales")
        roundings = {name: found.results[f"{name}.weight"] for name in decisions.schemes}
        changed = {name: found.results[name] for name in parameters}
        return replace(decisions.with_roundings(roundings), parameters={**decisions.parameters, **changed}), found

    def _where_it_is_learned(self, name: str, rounding: QuantizedWeight) -> QuantizedWeight:
        """Returns a rounding on the CPU if files keep what is learned of it."""
        return rounding.to(torch.device("cpu")) if name in self.keepers else rounding

    @staticmethod
    def _prepare(block: nn.Module, decisions: BlockDecisions, name: str, soft: Learnable) -> None:
        """Makes a linear transform its inputs as decided. Its own weight is not read: experts need no copy."""
        scheme = decisions.schemes[name]
        if scheme.rotation is not None or scheme.activation_bits == 8:
            set_weight(block, decisions, name, soft.leaf().detach())

    def _learn(self, block: nn.Module, soft: Mapping[str, Learnable], rate: float, what: str) -> Learned:
        device = next(block.parameters()).device
        samples = list(self.calls) if self.samples is None else self.samples
        drawn_from = [sample for sample in samples if sample not in self.validation] or list(self.validation)
        mass = dict(zip(samples, self._of_each(samples, lambda s: float(self.weights[s].sum()))))
        power = sum(self._of_each(samples, self._power))
        unit = power / sum(mass.values()) or 1.0  # mean ‖target‖² of a token

        def loss(tensors: Mapping[str, Tensor], sample: int) -> Tensor:
            args, kwargs = map_tensors(
                lambda t: t.to(device, torch.float32) if t.is_floating_point() else t.to(device),
                (self.calls[sample].args, self.calls[sample].kwargs),
            )
            args, kwargs = with_own_caches((args, kwargs))
            output = first_tensor(torch.func.functional_call(block, dict(tensors), args, kwargs))
            error = (output - self.targets[sample].to(device, torch.float32)).square().sum(-1)
            return (error * self.weights[sample].to(device)).sum() / unit

        generator = torch.Generator().manual_seed(self.seed)

        def batch_loss(tensors: Mapping[str, Tensor], step: int) -> float:
            batch = [drawn_from[i] for i in torch.randperm(len(drawn_from), generator=generator)[:BATCH].tolist()]
            total = gradients_in_order(partial(loss, tensors), list(tensors.values()), self._terms(batch))
            mean = total / sum(mass[sample] for sample in batch)
            bar.update()
            bar.set_postfix(loss=f"{mean:.2e}")
            return mean

        def validate(tensors: Mapping[str, Tensor]) -> float:
            losses = self._of_each(self.validation, lambda s: float(loss(tensors, s)))
            return sum(losses) / sum(mass[s] for s in self.validation)

        with tqdm(total=self.steps, desc=f"Learning {what}", unit="step", leave=False) as bar:
            return learn(soft, batch_loss, validate, steps=self.steps, rate=rate)

    def _power(self, sample: int) -> float:
        return float((self.weights[sample].unsqueeze(-1) * self.targets[sample].float().square()).sum())

    def _of_each(self, samples: Sequence[int], compute: Callable[[int], float]) -> list[float]:
        """Returns a number of each of some samples, on all ranks."""
        return self.ranks.of_each(((place, s) for place, s in enumerate(samples) if s in self.targets), compute)

    def _terms(self, batch: Sequence[int]) -> Terms[int]:
        """Returns the samples of a batch, each on the rank that has it."""
        mine = [sample for sample in batch if sample in self.targets]
        owners = {sample: rank for rank, of_rank in enumerate(self.ranks.gather(mine)) for sample in of_rank}
        return Terms(mine, [owners[sample] for sample in batch], self.ranks)
