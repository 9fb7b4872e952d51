"""Runs a sub-block f_s: from the tensor that a group of linears reads to where their outputs meet again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..equalization.fold import Group
from ..rounding.quant_grid import fake_quantize_tokens
from ..utils.first_call import first_call
from .layer_inputs import LayerInputs, map_tensors, with_own_caches

T = TypeVar("T")
MAX_TOKENS = 8192
"""Tokens of several samples that are run at once where a sub-block treats each token by itself."""


@dataclass
class GroupInputs:
    """One sample at a sub-block's entrance, or several in a row, on the CPU or on the device; `loaded` copies one.

    Attributes:
        samples: which ones.
        hidden: `[B, T, C]`, what the group's linears read in the full-precision model; in the model's dtype until
            loaded.
        hidden_q: `[B, T, C]`, the same in the quantized model.
        mask: bool `[B, T]`, True at real tokens.
        lengths: tokens of each sequence, in the order in which they stand in `[B * T]`.
        args: what the sub-block's module was called with.
        kwargs: the same, by name.
        token_weights: λ fp32 `[B, T]`; zero at padding.
        tokens: for each sample, int64 `[R]`: which of its tokens each of its rows belongs to; None where rows are
            tokens in order, or belong to none.
    """

    samples: list[int]
    hidden: Tensor
    hidden_q: Tensor
    mask: Tensor
    lengths: list[int]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    token_weights: Tensor = field(default_factory=lambda: torch.empty(0))
    tokens: list[Tensor | None] = field(default_factory=list)

    def loaded(self, device: torch.device, dtype: torch.dtype | None = torch.float32) -> GroupInputs:
        """Copies the inputs to `device`, all their floats in `dtype`; None leaves them in theirs."""
        hidden, hidden_q, mask, args, kwargs, token_weights = map_tensors(
            lambda t: t.to(device, dtype) if t.is_floating_point() else t.to(device),
            (self.hidden, self.hidden_q, self.mask, self.args, self.kwargs, self.token_weights),
        )
        return replace(
            self, hidden=hidden, hidden_q=hidden_q, mask=mask, args=args, kwargs=kwargs, token_weights=token_weights
        )

    def first_sequence_weights(self) -> dict[int, Tensor]:
        """Returns λ `[T]` of each sample's first sequence; the mean over the rows of a token that has several."""
        tokens = dict(zip(self.samples, self.tokens))
        by_sample = self.token_weights_by_sample()
        return {s: rows[0] if (t := tokens.get(s)) is None else _mean_by(t, rows[0]) for s, rows in by_sample.items()}

    def weights_of_output(self, shape: torch.Size) -> Tensor:
        """Returns λ for the tokens of a sub-block's output, fp32 of `shape`; 1 everywhere if they are other tokens."""
        weights, tokens = self.token_weights, self.tokens[0] if len(self.tokens) == 1 else None
        if weights.shape != shape and tokens is not None:
            weights = _mean_by(tokens.to(weights.device), weights.reshape(-1))
        if weights.shape == shape or (shape[0] == 1 and weights.numel() == shape.numel()):
            return weights.reshape(shape)
        return torch.ones(shape, device=weights.device)

    def token_weights_by_sample(self) -> dict[int, Sequence[Tensor]]:
        """Returns λ `[T]` of every sequence of each sample."""
        per_sample = len(self.lengths) // len(self.samples)
        rows = self.token_weights.reshape(-1).split(self.lengths)
        return {sample: rows[i * per_sample : (i + 1) * per_sample] for i, sample in enumerate(self.samples)}


def _mean_by(tokens: Tensor, values: Tensor) -> Tensor:
    """Returns the mean of `values` `[R]` over the rows of each token."""
    total = torch.zeros(int(tokens.max()) + 1, dtype=values.dtype, device=values.device)
    return total.index_add(0, tokens, values) / tokens.bincount()


NO_SAMPLE, UNKNOWN_ROWS = "no sample gets there", "its rows match no token, and all samples have padding"
"""Why a group has no inputs."""


class NotReached(RuntimeError):
    """Calls do not reach a sub-block, or not with rows that can be used."""


def enter(block: nn.Module, group: Group, call: LayerInputs) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Runs `block` on `call` up to the entrance of `group`'s sub-block.

    Returns:
        what the group's linears read (in the run that is meant), `[B, T, C]` in the block's dtype, and the sub-block's
        arguments.

    Raises:
        NotReached: the call never gets there.
    """
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = block.get_submodule(group.module).register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    call = call.to(next(block.parameters()).device)
    try:
        with torch.no_grad():
            first = block.get_submodule(group.linears[0])
            reached = first_call(first, lambda: block(*call.args, **call.kwargs), after=group.run)
    finally:
        handle.remove()
    if reached is None:
        raise NotReached(f"the call does not reach {group.linears[0]!r}")
    return reached[0][0], *seen[-1]


def run(
    block: nn.Module,
    group: Group,
    inputs: GroupInputs,
    x: Tensor,
    weights: Mapping[str, Tensor] | None = None,
    activation_bits: int = 16,
) -> Tensor:
    """Computes f_s(x, w): the sub-block's output with `x` where its linears read their input.

    Args:
        block: the block in fp32; not changed.
        group: which sub-block of it.
        inputs: loaded; the rest of the sub-block's arguments (masks, rotary embeddings).
        x: fp32 [B, T, C].
        weights: linear's path in the block → weight to use instead of its own.
        activation_bits: 8 rounds the input of every linear in `weights` per token.

    Returns:
        the first tensor of the output, fp32 [B, T', C'].
    """
    module = block.get_submodule(group.module)
    prefix = f"{group.module}." if group.module else ""
    rounds = set(weights or ()) if activation_bits == 8 else set()
    if isinstance(module, nn.Linear):
        x = fake_quantize_tokens(x) if group.module in rounds else x
        return nn.functional.linear(x, (weights or {}).get(group.module, module.weight), module.bias)
    handles = [
        block.get_submodule(name).register_forward_pre_hook(lambda _, args: (x.view_as(args[0]), *args[1:]))
        for name in group.linears
    ]
    handles += [
        block.get_submodule(name).register_forward_pre_hook(lambda _, args: (fake_quantize_tokens(args[0]), *args[1:]))
        for name in rounds  # after x was put in
    ]
    try:
        replaced = {f"{name.removeprefix(prefix)}.weight": weight for name, weight in (weights or {}).items()}
        args, kwargs = ((x,), {}) if len(inputs.samples) > 1 else with_own_caches((inputs.args, inputs.kwargs))
        output = torch.func.functional_call(module, replaced, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    first = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    return first if first.ndim == 3 else first.reshape(1, -1, first.shape[-1])


def merge(block: nn.Module, group: Group, gathered: Sequence[GroupInputs]) -> list[GroupInputs]:
    """Joins inputs into fewer, longer ones if the sub-block treats each token by itself; it runs faster on many."""
    device = next(block.parameters()).device
    if not gathered or not is_tokenwise(block, group, gathered[0].loaded(device)):
        return list(gathered)
    return [join(row) for row in rows_of(gathered, tokens_of)]


def join(row: Sequence[GroupInputs]) -> GroupInputs:
    """Puts the tokens of several inputs one after the other, without the sub-block's arguments."""
    if len(row) == 1:
        return row[0]
    return GroupInputs(
        [s for one in row for s in one.samples],
        torch.cat([_in_one_row(one.hidden) for one in row], 1),
        torch.cat([_in_one_row(one.hidden_q) for one in row], 1),
        torch.cat([_in_one_row(one.mask) for one in row], 1),
        [length for one in row for length in one.lengths],
        tokens=[tokens for one in row for tokens in one.tokens],
    )


@torch.no_grad()
def is_tokenwise(block: nn.Module, group: Group, inputs: GroupInputs) -> bool:
    """Whether the output at a token depends on the input at that token alone: tested by changing the first and last."""
    if isinstance(block.get_submodule(group.module), nn.Linear):
        return True
    tensors = [leaf for leaf in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(leaf, Tensor)]
    if len(tensors) != 1 or len(inputs.args) != 1 or inputs.hidden.shape[1] < 2:
        return False
    if tensors[0].shape not in (inputs.hidden.shape, inputs.hidden.shape[1:]):
        return False
    x = inputs.hidden
    halves = [run(block, group, inputs, half) for half in (x, torch.cat([x[:, :-1], -x[:, -1:]], 1))]
    ends = [run(block, group, inputs, half) for half in (x, torch.cat([-x[:, :1], x[:, 1:]], 1))]
    if halves[0].shape[:2] != x.shape[:2]:
        return False
    size = halves[0].abs().max() * 1e-5
    return bool((halves[0] - halves[1])[:, :-1].abs().max() <= size and (ends[0] - ends[1])[:, 1:].abs().max() <= size)


def rows_of(gathered: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Yields inputs, or what stands for them, in rows of at most `MAX_TOKENS` tokens, in order."""
    row: list[T] = []
    for one in gathered:
        if row and sum(map(size, row)) + size(one) > MAX_TOKENS:
            yield row
            row = []
        row.append(one)
    yield row


def tokens_of(inputs: GroupInputs) -> int:
    """Returns the number of tokens, padding included."""
    return inputs.mask.numel()


def _in_one_row(tensor: Tensor) -> Tensor:
    return tensor.reshape(1, -1, *tensor.shape[2:])
