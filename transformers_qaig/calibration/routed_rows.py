"""Gathers what a stack of experts reads: the tokens of all samples, and which experts they are routed to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..equalization.fold import Group
from ..execution.exclusions import NotFinite
from ..execution.gathering import RowFinder, Rows
from ..execution.group_inputs import GroupInputs, NotReached, enter
from ..execution.interceptor import TargetInputs, map_tensors
from ..nn.experts_module import LinearExperts, routing
from ..scheme import Plan
from ..token_weights.base import SubBlock, TokenWeights
from ..utils.finite import is_finite
from ..utils.logging import get_logger

logger = get_logger(__name__)

CHUNK = 8192
"""Tokens that are on the device at once."""


@dataclass
class RoutedRows:
    """The tokens of some samples at the entrance of a stack, on the CPU.

    Attributes:
        hidden: `[T, H]` in the full-precision model.
        hidden_q: `[T, H]` in the quantized model.
        token_weights: λ fp32 `[T]`; zero at padding.
        index: int64 `[T, k]`, the experts that the quantized model chooses.
        weights: fp32 `[T, k]`, their weights.
        all_experts: whether every token counts for every expert, and by λ alone.
    """

    hidden: Tensor
    hidden_q: Tensor
    token_weights: Tensor
    index: Tensor
    weights: Tensor
    all_experts: bool = False

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def num_tokens(self) -> int:
        """The number of tokens that count."""
        return int((self.token_weights > 0).sum())

    def of(self, expert: int) -> tuple[Tensor, Tensor]:
        """Returns the positions of an expert's tokens, and how much each one counts: λ times its routing weight.

        The square of that weight is the share of the token's squared error in the output of the stack. But squares
        leave fewer tokens that count: on held-back scenes they were no better, and worse with few samples.
        """
        if self.all_experts:
            token = self.token_weights.nonzero().flatten()
            return token, self.token_weights[token]
        token, slot = ((self.index == expert) & (self.token_weights > 0)[:, None]).nonzero(as_tuple=True)
        return token, self.token_weights[token] * self.weights[token, slot]

    def counts(self, num_experts: int) -> list[int]:
        """Returns the number of tokens that count for each expert.

        A class without routing passes every token to every expert, as zeros where the expert is not chosen.
        """
        if self.all_experts:
            return [self.num_tokens] * num_experts
        chosen = self.index[(self.token_weights > 0)[:, None] & (self.weights > 0)]
        return chosen[chosen < num_experts].bincount(minlength=num_experts).tolist()

    def chunks(self, device: torch.device) -> Iterator[RoutedRows]:
        """Yields `CHUNK` tokens after the other, on `device` and in fp32."""
        for start in range(0, len(self), CHUNK):
            here = slice(start, start + CHUNK)
            floats = (self.hidden, self.hidden_q, self.token_weights)
            hidden, hidden_q, token_weights = (tensor[here].to(device, torch.float32) for tensor in floats)
            index, weights = self.index[here].to(device), self.weights[here].to(device)
            yield RoutedRows(hidden, hidden_q, token_weights, index, weights, self.all_experts)


@dataclass(frozen=True)
class Entrance:
    """Where a stack is, in both models.

    Attributes:
        stack: its path in the block.
        owner: the block in the model itself.
        block: the same in fp32, with the weights as they are so far.
        blocks: the block in full precision, and quantized so far, as they run.
        schemes: paths of the stack's weights in the block → how they will be stored.
        include_zero: whether grids are widened to hold zero.
        dtype: of stored scales.
    """

    stack: str
    owner: nn.Module
    block: nn.Module
    blocks: tuple[nn.Module, nn.Module]
    schemes: Plan
    include_zero: bool
    dtype: torch.dtype

    @property
    def group(self) -> Group:
        """The stack as a sub-block whose only module it is."""
        return Group((self.stack,), self.stack, None, ())

    def weigh(self, inputs: Sequence[GroupInputs], token_weights: TokenWeights) -> list[Tensor]:
        """Computes λ fp32 `[1, T]` of each sample; zero at padding."""
        sub_block = SubBlock(
            self.owner, self.block, self.group, inputs, self.schemes, self.include_zero, self.dtype, is_searched=False
        )
        weights = token_weights.weigh(sub_block)
        for one, found in zip(inputs, weights):
            if not is_finite(found):
                raise NotFinite(one.samples[0], f"the token weights at {self.stack}")
        return weights


def gather_routed(
    entrance: Entrance,
    inputs: TargetInputs,
    samples: Sequence[int],
    token_weights: TokenWeights,
    all_experts: bool = False,
) -> RoutedRows:
    """Collects the tokens of some samples at the entrance of a stack, in both models.

    Args:
        entrance: of the stack.
        inputs: what its block is called with.
        samples: which ones. Those that do not get there are left out.
        token_weights: weigh the tokens.
        all_experts: whether every token counts for every expert.

    Raises:
        NotReached: no sample gets there, or padding cannot be found among the rows.
        NotFinite: a real token of a sample is not finite there.
    """
    experts = entrance.blocks[0].get_submodule(entrance.stack)
    assert isinstance(experts, LinearExperts)
    rows_of = RowFinder(entrance.blocks[0], entrance.group, inputs, samples)
    found, routings, reason = [], [], "no sample gets there"
    for sample in samples:
        try:
            x, _, _ = enter(entrance.blocks[0], entrance.group, inputs.full[sample])
            x_q, args, kwargs = enter(entrance.blocks[1], entrance.group, inputs.quantized[sample])
        except NotReached:
            continue
        rows = rows_of.rows(sample, x)
        if rows is None:
            reason = "its rows match no token, and all samples have padding"
            continue
        found.append(_one_sample(entrance.stack, sample, (x, x_q), rows, args, kwargs))
        routings.append(_routing(experts, args, kwargs, x_q.reshape(-1, x_q.shape[-1])))
    if not found:
        raise NotReached(reason)
    weights = torch.cat([each.flatten() for each in entrance.weigh(found, token_weights)])
    hidden, hidden_q = (torch.cat([getattr(one, name)[0] for one in found]) for name in ("hidden", "hidden_q"))
    if all_experts and not experts.stack.is_routed:
        logger.info("`moe_calibrate_all_experts`: %s gets every expert's rows from the model.", entrance.stack)
    index, routing_weights = (torch.cat(each) for each in zip(*routings))
    return RoutedRows(hidden, hidden_q, weights, index, routing_weights, all_experts and experts.stack.is_routed)


def _one_sample(
    stack: str,
    sample: int,
    hidden: tuple[Tensor, Tensor],
    rows: Rows,
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> GroupInputs:
    """Returns a sample's rows as one sequence, on the CPU; zeros where padding is not finite."""
    mask = rows.mask.reshape(-1)
    x, x_q = (tensor.reshape(-1, tensor.shape[-1]).cpu() for tensor in hidden)
    for tensor, model in ((x, "full-precision"), (x_q, "quantized")):
        if not is_finite(tensor[mask]):
            raise NotFinite(sample, f"the {model} hidden states that {stack} reads")
    x, x_q = (tensor.nan_to_num(0.0, 0.0, 0.0)[None] for tensor in (x, x_q))
    args, kwargs = map_tensors(lambda tensor: tensor.cpu(), (args, kwargs))
    return GroupInputs([sample], x, x_q, mask[None], [len(mask)], args, kwargs, tokens=[rows.tokens])


def _routing(
    experts: LinearExperts, args: Sequence[Tensor], kwargs: dict[str, Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the chosen experts of each row `[T, k]`, and their weights, on the CPU."""
    layout = experts.stack
    if layout.is_routed or layout.is_shared:
        values = (*args, *(kwargs[name] for name in layout.arguments[len(args) :]))
        index, weights = routing(layout, values, len(x))
        return index.cpu(), weights.float().abs().cpu()
    index = torch.arange(layout.num_experts).repeat_interleave(len(x) // layout.num_experts)
    return index[:, None], (x != 0).any(-1, keepdim=True).float().cpu()  # rows of experts not chosen are zero
