"""Quantizes a stack of experts: each one by the second moments of the tokens that are routed to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..equalization.fold import Group
from ..execution.exclusions import NotFinite
from ..execution.gathering import RowFinder
from ..execution.group_inputs import NotReached, enter
from ..execution.interceptor import TargetInputs
from ..nn.experts_module import LinearExperts
from ..nn.linear import get_linear
from ..rounding.clipping import diagonal_blocks, search_clipping
from ..rounding.hessian import MIN_TOKENS, Hessian, HessianAccumulator
from ..utils.finite import is_finite
from .decisions import BlockDecisions, folded_view
from .steps import GroupContext, gptq

CHUNK = 8192
"""Rows that are multiplied at once."""


@dataclass
class RoutedRows:
    """The tokens of some samples at the entrance of a stack, on the CPU.

    Attributes:
        hidden: `[T, H]` in the full-precision model.
        hidden_q: `[T, H]` in the quantized model.
        mask: bool `[T]`, True at real tokens.
        index: int64 `[T, k]`, the experts that the quantized model chooses.
        weights: fp32 `[T, k]`, their weights.
    """

    hidden: Tensor
    hidden_q: Tensor
    mask: Tensor
    index: Tensor
    weights: Tensor

    def of(self, expert: int) -> tuple[Tensor, Tensor]:
        """Returns the positions of the real tokens that are routed to an expert, and how much each one counts.

        A token's error in the output of the stack is its expert's, times its routing weight.
        """
        token, slot = ((self.index == expert) & self.mask[:, None]).nonzero(as_tuple=True)
        return token, self.weights[token, slot].square()


def gather_routed(
    stack: str, blocks: tuple[nn.Module, nn.Module], inputs: TargetInputs, samples: Sequence[int]
) -> RoutedRows:
    """Collects the tokens of some samples at the entrance of a stack, in both models.

    Args:
        stack: its path in the block.
        blocks: the block in full precision, and quantized so far.
        inputs: what they are called with.
        samples: which ones. Those that do not get there are left out.

    Raises:
        NotReached: no sample gets there, or padding cannot be found among the rows.
        NotFinite: a real token of a sample is not finite there.
    """
    group = Group((stack,), stack, None, ())
    experts, rows_of = blocks[0].get_submodule(stack), RowFinder(blocks[0], group, inputs, samples)
    assert isinstance(experts, LinearExperts)
    found, reason = [], "no sample gets there"
    for sample in samples:
        try:
            x, _, _ = enter(blocks[0], group, inputs.full[sample])
            x_q, args, kwargs = enter(blocks[1], group, inputs.quantized[sample])
        except NotReached:
            continue
        rows = rows_of.rows(sample, x)
        if rows is None:
            reason = "its rows match no token, and all samples have padding"
            continue
        mask = rows.mask.reshape(-1)
        x, x_q = (t.reshape(-1, t.shape[-1]).cpu() for t in (x, x_q))
        for tensor, model in ((x, "full-precision"), (x_q, "quantized")):
            if not is_finite(tensor[mask]):
                raise NotFinite(sample, f"the {model} hidden states that {stack} reads")
        index, weights = _routing(experts, args, kwargs, x_q)
        found.append((x.nan_to_num(0.0), x_q.nan_to_num(0.0), mask, index.cpu(), weights.float().cpu()))
    if not found:
        raise NotReached(reason)
    return RoutedRows(*(torch.cat(tensors) for tensors in zip(*found)))


def _routing(
    experts: LinearExperts, args: Sequence[Tensor], kwargs: dict[str, Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the chosen experts of each row `[T, k]`, and their weights."""
    layout = experts.stack
    if layout.is_routed:
        _, index, weights = (*args, *(kwargs[name] for name in layout.arguments[len(args) :]))
        return index.reshape(len(x), -1), weights.reshape(len(x), -1)
    index = torch.arange(layout.num_experts).repeat_interleave(len(x) // layout.num_experts)
    return index[:, None], (x != 0).any(-1, keepdim=True)  # rows of experts that were not chosen are zero


@dataclass
class StackStep:
    """Chooses the codes (or clips the ranges) of all experts of a stack.

    An expert with fewer than `MIN_TOKENS` tokens is rounded by the mean of the stack's moments.

    Attributes:
        stack: its path in the block.
        context: of all its linears, without inputs.
        averaged: the experts that had too few tokens, in the last call.
    """

    stack: str
    context: GroupContext
    averaged: list[int] = field(default_factory=list)

    @torch.no_grad()
    def __call__(self, rows: RoutedRows, decisions: BlockDecisions) -> BlockDecisions | None:
        """Returns the decisions with the stack's own added; None if the recipe makes none, or with too few tokens.

        Args:
            rows: the tokens that reach the stack.
            decisions: so far.
        """
        recipe = self.context.recipe
        if (recipe.rounding == "nearest" and not recipe.clipping) or int(rows.mask.sum()) < MIN_TOKENS:
            return None
        block = folded_view(self.context.block, decisions)
        experts = block.get_submodule(self.stack)
        assert isinstance(experts, LinearExperts)
        first = experts.stack.projections[:-1]
        few = [e for e in range(experts.stack.num_experts) if len(rows.of(e)[0]) < MIN_TOKENS]
        self.averaged = few
        decisions = self._projections(first, rows, few, block, experts, decisions)
        return self._projections(("down_proj",), rows, few, block, experts, decisions)

    def _projections(
        self,
        names: Sequence[str],
        rows: RoutedRows,
        few: Sequence[int],
        block: nn.Module,
        experts: LinearExperts,
        decisions: BlockDecisions,
    ) -> BlockDecisions:
        """Chooses the codes of projections that share their input: first of experts with tokens enough."""
        mean = _Moments()
        for expert in range(experts.stack.num_experts):
            own = _Moments()
            for x, x_q, weights in self._inputs(names, expert, rows, block, experts, decisions):
                own.add(x, x_q, weights, bool(self.context.recipe.asymmetric))
            mean.join(own)
            if expert not in few:
                decisions = self._rounded(names, expert, own, block, decisions)
        for expert in few:
            decisions = self._rounded(names, expert, mean, block, decisions)
        return decisions

    def _inputs(
        self,
        names: Sequence[str],
        expert: int,
        rows: RoutedRows,
        block: nn.Module,
        experts: LinearExperts,
        decisions: BlockDecisions,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields what an expert's linears read in both models, `[1, R, K]`, and how much each row counts."""
        device = self.context.device
        for tokens, counts in zip(*(t.split(CHUNK) for t in rows.of(expert))):
            if not len(tokens):
                return
            x, x_q = (hidden[tokens].to(device, torch.float32) for hidden in (rows.hidden, rows.hidden_q))
            if "down_proj" in names:
                first = [f"{self.stack}.{expert}.{name}" for name in experts.stack.projections[:-1]]
                ids = torch.full((len(tokens),), expert, device=device)
                weights = [get_linear(block, name).weight for name in first]
                rounded = [decisions.rounding(n, w, self.context.dtype).values for n, w in zip(first, weights)]
                x = experts.activate([x @ weight.T for weight in weights], ids)
                x_q = experts.activate([decisions.inputs(x_q, n) @ weight.T for n, weight in zip(first, rounded)], ids)
            yield x[None], decisions.inputs(x_q, f"{self.stack}.{expert}.{names[0]}")[None], counts[None].to(device)

    def _rounded(
        self, names: Sequence[str], expert: int, moments: _Moments, block: nn.Module, decisions: BlockDecisions
    ) -> BlockDecisions:
        """Adds the codes, or clipped ranges, of one expert's projections."""
        context, recipe = self.context, self.context.recipe
        if not float(moments.mass):
            return decisions
        moment, drift = moments.mean()
        hessian = Hessian.of(moment) if recipe.rounding != "nearest" else None
        for path in (f"{self.stack}.{expert}.{name}" for name in names):
            weight, arguments = decisions.weight(block, path), decisions.grid_arguments(path, context.dtype)
            if hessian is None:
                blocks = diagonal_blocks(moment, arguments["group_size"])
                clipping = search_clipping(weight, blocks, layer=context.name_of(path), **arguments)
                decisions = decisions.with_clippings({path: clipping})
                continue
            if recipe.asymmetric:
                weight = weight + recipe.asymmetric * hessian.solve(drift @ weight.T).T
            rounding = gptq.codes(path, weight, hessian, arguments, context)
            kept = rounding if recipe.rounding == "learned" else replace(rounding, source=None)
            decisions = decisions.with_roundings({path: kept})
        return decisions


class _Moments:
    """Σ λ x_q x_qᵀ, Σ λ x_q (x - x_q)ᵀ and Σ λ."""

    def __init__(self) -> None:
        self.second, self.drift = HessianAccumulator(), HessianAccumulator()

    @property
    def mass(self) -> Tensor:
        return self.second.mass

    def add(self, x: Tensor, x_q: Tensor, weights: Tensor, with_drift: bool) -> None:
        self.second.add(x_q, x_q, weights)
        if with_drift:
            self.drift.add(x_q, x - x_q, weights)

    def join(self, other: _Moments) -> None:
        for mine, theirs in ((self.second, other.second), (self.drift, other.drift)):
            if theirs.moment.ndim:
                mine.moment = mine.moment.to(theirs.moment) + theirs.moment
                mine.mass = mine.mass.to(theirs.mass) + theirs.mass

    def mean(self) -> tuple[Tensor, Tensor]:
        divisor = self.mass.clamp(min=1e-12)
        return self.second.moment / divisor, self.drift.moment / divisor
