"""Quantizes a stack of experts: each one by the second moments of its tokens, several experts at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..execution.routed_rows import RoutedRows
from ..nn.experts_layout import ExpertsLayout, expert_path, split_path
from ..nn.experts_module import LinearExperts
from ..rounding.clipping import diagonal_blocks, search_clipping
from ..rounding.hessian import DAMPING, MIN_TOKENS, Hessian, HessianAccumulator, finite_tokens
from ..rounding.learned import Keep, in_memory
from .decisions import BlockDecisions, folded_view
from .group_context import GroupContext
from .quantizer_settings import memory_for_experts
from .steps import gptq

MORE_DAMPING = 4
"""The Hessian's damping grows by this times K / n, with K channels and n tokens of an expert."""
_MOST_NOISE = 100.0
_FLOAT32 = 4


@dataclass
class StackStep:
    """Chooses the codes (or clips the ranges) of all experts of a stack.

    An expert with fewer than `MIN_TOKENS` tokens is rounded by the mean of the stack's moments. Experts are taken in
    slices whose moments fit into memory together. The result does not depend on the slices.

    Attributes:
        stack: its path in the block.
        context: of all its linears, without inputs.
        memory: bytes that the moments of a slice may take; None for a share of what is free.
        keepers: path in the block of a weight → where what `best` learns from is kept; in memory where it has none.
        is_trial: whether the next call's result is validated, and then made again with more samples.
        averaged: the experts that had too few tokens, in the last call.
        to_nearest: path in the block of a weight that was rounded to nearest in the last call → why.
    """

    stack: str
    context: GroupContext
    memory: int | None = None
    keepers: Mapping[str, Keep] = field(default_factory=dict)
    is_trial: bool = False
    averaged: list[int] = field(default_factory=list)
    to_nearest: dict[str, str] = field(default_factory=dict)

    @property
    def does_more_than_nearest(self) -> bool:
        """Whether the recipe does more to experts than round them to nearest."""
        return self.context.recipe.rounding != "nearest" or self.context.recipe.clipping

    @torch.no_grad()
    def __call__(self, rows: RoutedRows, decisions: BlockDecisions) -> BlockDecisions | None:
        """Returns the decisions with the stack's own added; None if the recipe makes none, or with too few tokens.

        Args:
            rows: the tokens that reach the stack.
            decisions: so far.
        """
        if not self.does_more_than_nearest or rows.num_tokens < MIN_TOKENS:
            return None
        block = folded_view(self.context.block, decisions)
        experts = block.get_submodule(self.stack)
        assert isinstance(experts, LinearExperts)
        counts = rows.counts(experts.stack.num_experts)
        self.averaged, self.to_nearest = [e for e, count in enumerate(counts) if count < MIN_TOKENS], {}
        for names in (experts.stack.projections[:-1], ("down_proj",)):
            decisions = self._projections(names, rows, block, experts, decisions)
        return decisions

    def _projections(
        self,
        names: Sequence[str],
        rows: RoutedRows,
        block: nn.Module,
        experts: LinearExperts,
        decisions: BlockDecisions,
    ) -> BlockDecisions:
        """Chooses the codes of projections that share their input: first of experts with tokens enough."""
        everyone, mean = range(experts.stack.num_experts), Moments()
        if rows.all_experts and "down_proj" not in names:  # all experts read the same
            solved = self._moments(names, [0], rows, block, experts, decisions)[0].solved(self.context)
            return self._rounded(names, everyone, solved, block, decisions)
        for part in self._slices(names, experts.stack):
            found = self._moments(names, part, rows, block, experts, decisions)
            for expert in part:
                own = found.pop(expert)
                if self.averaged:
                    mean.join(own)
                if expert not in self.averaged:
                    decisions = self._rounded(names, [expert], own.solved(self.context), block, decisions)
                del own  # before the next slice is gathered
        if not self.averaged:
            return decisions
        return self._rounded(names, self.averaged, mean.solved(self.context), block, decisions)

    def _slices(self, names: Sequence[str], layout: ExpertsLayout) -> Iterator[range]:
        """Yields the experts whose moments are gathered together."""
        rows, columns = layout.shape(names[0])
        each = columns**2 * (2 if self.context.recipe.asymmetric else 1)
        if "down_proj" in names:  # its inputs are computed with the others' weights, in both models
            each += 2 * rows * columns * len(layout.projections[:-1])
        fitting = memory_for_experts(self.memory, self.context.device) // (_FLOAT32 * each)
        size = max(fitting - bool(self.averaged), 1)  # their mean is held beside a slice
        for start in range(0, layout.num_experts, size):
            yield range(start, min(start + size, layout.num_experts))

    def _moments(
        self,
        names: Sequence[str],
        wanted: Sequence[int],
        rows: RoutedRows,
        block: nn.Module,
        experts: LinearExperts,
        decisions: BlockDecisions,
    ) -> dict[int, Moments]:
        """Adds up the moments of some experts' inputs."""
        found = {expert: Moments() for expert in wanted}
        dtype, paths = self.context.dtype, {e: expert_path(self.stack, e, names[0]) for e in wanted}
        inputs = {e: ExpertInputs.of(path, block, experts, decisions, dtype) for e, path in paths.items()}
        for chunk in rows.chunks(self.context.device):
            for expert, own in found.items():
                tokens, counts = chunk.of(expert)
                if len(tokens):
                    read = inputs[expert](chunk.hidden[tokens], chunk.hidden_q[tokens])
                    own.add(*read, counts, bool(self.context.recipe.asymmetric))
        return found

    def _rounded(
        self,
        names: Sequence[str],
        wanted: Sequence[int],
        solved: Solved | None,
        block: nn.Module,
        decisions: BlockDecisions,
    ) -> BlockDecisions:
        """Adds the codes, or clipped ranges, of some experts' projections; nothing if no token counts."""
        context, recipe = self.context, self.context.recipe
        paths = [expert_path(self.stack, expert, name) for expert in wanted for name in names]
        if solved is None:
            self.to_nearest.update(dict.fromkeys(paths, "no token counts for it"))
            return decisions
        for path in paths:
            weight, arguments = decisions.weight(block, path), decisions.grid_arguments(path, context.dtype)
            if solved.hessian is None:
                blocks = diagonal_blocks(solved.moment, arguments["group_size"])
                clipping = search_clipping(weight, blocks, layer=context.name_of(path), **arguments)
                decisions = decisions.with_clippings({path: clipping})
                continue
            if recipe.asymmetric:
                weight = weight + recipe.asymmetric * solved.hessian.solve(solved.shift @ weight.T).T
            rounding = gptq.codes(path, weight, solved.hessian, arguments, context, self.is_trial)
            source = rounding.source if recipe.rounding == "learned" else None
            if source is not None:
                source = self.keepers.get(path, in_memory)(source)
            decisions = decisions.with_roundings({path: replace(rounding, source=source)})
        return decisions


@dataclass(frozen=True)
class ExpertInputs:
    """Computes what the projections of an expert read, and multiply, in both models.

    Attributes:
        path: of the first of them in the block.
        decisions: so far.
        experts: the stack.
        index: of the expert.
        full: fp32 weights `[I, H]` of the earlier projections in full precision; none for those that read first.
        rounded: the same, rounded.
        first: path of the first projection that reads the stack's input.
    """

    path: str
    decisions: BlockDecisions
    experts: LinearExperts
    index: int
    full: Sequence[Tensor] = ()
    rounded: Sequence[Tensor] = ()
    first: str = ""

    @classmethod
    def of(
        cls,
        path: str,
        block: nn.Module,
        experts: LinearExperts,
        decisions: BlockDecisions,
        dtype: torch.dtype,
    ) -> ExpertInputs:
        """Makes it for a weight of an expert, and those that read the same.

        Args:
            path: of the weight in the block.
            block: in fp32, with the decided scales folded.
            experts: its stack in the block.
            decisions: so far.
            dtype: of stored scales.
        """
        parts = split_path(path)
        assert parts is not None
        stack, index, projection = parts
        if projection != "down_proj":
            return cls(path, decisions, experts, int(index))
        first = [expert_path(stack, index, name) for name in experts.stack.projections[:-1]]
        full = [decisions.weight(block, name) for name in first]
        rounded = [decisions.rounding(name, weight, dtype).values for name, weight in zip(first, full)]
        return cls(path, decisions, experts, int(index), full, rounded, first[0])

    def __call__(self, x: Tensor, x_q: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the inputs `[R, K]` in full precision, and as the quantized model multiplies them.

        Args:
            x: fp32 `[R, H]`, what the expert reads in the full-precision model.
            x_q: the same in the quantized model.
        """
        if self.full:
            ids = torch.full((len(x),), self.index, device=x.device)
            x = self.experts.activate([x @ weight.T for weight in self.full], ids)
            x_q = self.decisions.inputs(x_q, self.first)
            x_q = self.experts.activate([x_q @ weight.T for weight in self.rounded], ids)
        return x, self.decisions.inputs(x_q, self.path)


class Solved(NamedTuple):
    """What experts are rounded by.

    Attributes:
        moment: Σ λ x_q x_qᵀ / Σ λ, fp32 `[K, K]`.
        shift: Σ λ x_q (x - x_q)ᵀ / Σ λ, fp32 `[K, K]`, shrunk; where the recipe asks for it.
        hessian: of the moment; None with a recipe that rounds to nearest.
    """

    moment: Tensor
    shift: Tensor
    hessian: Hessian | None


class Moments:
    """Σ λ x_q x_qᵀ, Σ λ x_q (x - x_q)ᵀ, Σ λ and Σ λ² of an expert's tokens, or of several experts'."""

    def __init__(self) -> None:
        self.second, self.shift = HessianAccumulator(), HessianAccumulator()
        self.squares = torch.zeros(())

    def add(self, x: Tensor, x_q: Tensor, weights: Tensor, with_shift: bool) -> None:
        """Adds tokens: x fp32 `[R, K]`, x_q fp32 `[R, K]`, λ fp32 `[R]`."""
        x_q, x, weights = finite_tokens(x_q, x, weights)
        self.second.add(x_q, x_q, weights)
        self.squares = self.squares.to(weights) + weights.square().sum()
        if with_shift:
            self.shift.add(x_q, x - x_q, weights)

    def join(self, other: Moments) -> None:
        """Adds the tokens of another expert."""
        self.squares = self.squares.to(other.squares) + other.squares
        for mine, theirs in ((self.second, other.second), (self.shift, other.shift)):
            mine.join(theirs)

    @property
    def noise(self) -> float:
        """K / n for K channels and n = (Σ λ)² / Σ λ², the number of tokens that count alike.

        An expert sees few tokens where a linear sees all. So its moments, and a regression by them, are noisier.
        """
        if not float(self.squares):  # of weights so small that their squares are zero
            return math.inf
        return len(self.second.moment) * float(self.squares) / float(self.second.mass) ** 2

    def solved(self, context: GroupContext) -> Solved | None:
        """Returns the means, and the Hessian if the recipe rounds by it; None if no token counts."""
        mass = self.second.mass
        if not float(mass):
            return None
        self.second.complete()
        moment, shift = self.second.moment / mass.clamp(min=1e-12), self.shift.moment / mass.clamp(min=1e-12)
        if context.recipe.rounding == "nearest":
            return Solved(moment, shift, None)
        as_published = not context.recipe.clipping  # the recipe `gptq`
        damping = DAMPING * (1 if as_published else 1 + MORE_DAMPING * min(self.noise, _MOST_NOISE))
        return Solved(moment, shift / (1 + self.noise), Hessian.of(moment, damping=damping))
