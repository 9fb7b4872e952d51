"""Gathers what a stack of experts reads: the tokens of all samples, and which experts they are routed to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from ..equalization.fold import Group
from ..nn.experts_module import LinearExperts, routing
from ..utils.finite import is_finite
from ..utils.logging import get_logger
from .exclusions import NotFinite, place_in
from .group_inputs import NO_SAMPLE, UNKNOWN_ROWS, GroupInputs, NotReached, enter
from .layer_inputs import TargetInputs, map_tensors
from .token_rows import RowFinder, Rows

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


def gather_routed(
    stack: str,
    blocks: tuple[nn.Module, nn.Module],
    inputs: TargetInputs,
    samples: Sequence[int],
    weigh: Callable[[list[GroupInputs]], list[Tensor]],
    all_experts: bool = False,
) -> RoutedRows:
    """Collects the tokens of some samples at the entrance of a stack, in both models.

    Args:
        stack: its path in the block.
        blocks: the block in full precision, and quantized so far.
        inputs: what they are called with.
        samples: which ones. Those that do not get there are left out.
        weigh: returns λ fp32 `[1, T]` of each sample; zero at padding.
        all_experts: whether every token counts for every expert.

    Raises:
        NotReached: no sample gets there, or padding cannot be found among the rows.
        NotFinite: a real token of a sample is not finite there.
    """
    experts, group = blocks[0].get_submodule(stack), Group((stack,), stack, None, ())
    assert isinstance(experts, LinearExperts)
    rows_of = RowFinder(blocks[0], group, inputs, [sample for sample in samples if sample in inputs.full])

    def local_result() -> tuple[list[tuple[int, tuple[Tensor, ...]]], str]:
        found, routings, reason = [], [], NO_SAMPLE
        for sample in rows_of.samples:
            try:
                x, _, _ = enter(blocks[0], group, inputs.full[sample])
                x_q, args, kwargs = enter(blocks[1], group, inputs.quantized[sample])
            except NotReached:
                continue
            rows = rows_of.rows(sample, x)
            if rows is None:
                reason = UNKNOWN_ROWS
                continue
            found.append(_one_sample(stack, sample, (x, x_q), rows, args, kwargs))
            routings.append(_routing(experts, args, kwargs, x_q.reshape(-1, x_q.shape[-1])))
        weighed = zip(found, weigh(found), routings)
        return [
            (place[one.samples[0]], (one.hidden[0], one.hidden_q[0], weights.flatten(), *routing))
            for one, weights, routing in weighed
        ], reason

    place = {sample: index for index, sample in enumerate(samples)}
    of_ranks = inputs.ranks.together(local_result, place_in(samples))
    found = sorted(chain(*(of_rank for of_rank, _ in of_ranks)), key=lambda pair: pair[0])
    if not found:
        raise NotReached(max((reason for _, reason in of_ranks), key=len))
    if all_experts and not experts.stack.is_routed:
        logger.info("`moe_calibrate_all_experts`: %s gets every expert's rows from the model.", stack)
    hidden, hidden_q, weights, index, routing = (torch.cat(each) for each in zip(*(tensors for _, tensors in found)))
    return RoutedRows(hidden, hidden_q, weights, index, routing, all_experts and experts.stack.is_routed)


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
