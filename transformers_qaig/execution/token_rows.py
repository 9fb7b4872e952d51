"""Finds which token each row of a tensor belongs to, whatever the tensor's rank: by shape, and by probing a block.

A linear may read tokens as `[B, T, K]`, flattened `[B * T, K]`, with heads or streams beside them, or transposed.
Rows are those of the tensor seen as `[R, K]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn

from ..equalization.fold import Group
from .group_inputs import NotReached, enter
from .layer_inputs import LayerInputs, TargetInputs, hidden_states, map_tensors

MAX_COPIES = 4096
"""The most rows of one token that a layout is looked for."""
PROBED = 3
"""Tokens that are changed, one at a time, to choose among layouts."""


class OtherTokens(Exception):
    """The rows of a tensor depend on none of the block's own tokens: they are an encoder's, or an image's."""


@dataclass(frozen=True)
class RowLayout:
    """The order of tokens in the rows of a tensor, the same for every batch size and length.

    Attributes:
        copies: rows of a token, as three factors: outside of both axes of the tokens, between them, and inside.
        batch_first: whether the batch is the outer of the two axes.
    """

    copies: tuple[int, int, int] = (1, 1, 1)
    batch_first: bool = True

    @property
    def is_plain(self) -> bool:
        """Whether rows are tokens in their own order."""
        return self.batch_first and prod(self.copies) == 1

    def fits(self, rows: int, grid: Sequence[int]) -> bool:
        """Whether a tensor of so many rows can have this layout, for tokens `[B, T]`."""
        return rows == prod(self.copies) * prod(grid)

    def tokens(self, grid: Sequence[int]) -> Tensor:
        """Returns the token of every row, int64 `[R]` on the CPU: its position in `[B * T]`."""
        tokens = torch.arange(prod(grid), device="cpu").reshape(*grid)
        tokens = tokens if self.batch_first else tokens.T
        outside, between, inside = self.copies
        sizes = (outside, tokens.shape[0], between, tokens.shape[1], inside)
        return tokens[None, :, None, :, None].expand(sizes).reshape(-1)


def layouts_of_axes(shape: Sequence[int], grid: Sequence[int]) -> list[RowLayout]:
    """Lists the layouts in which axes of a tensor are the tokens' own, likeliest first.

    Args:
        shape: of the tensor without its last dimension.
        grid: B, T.
    """
    batch, length = grid
    found = []
    for i, j in ((i, j) for i in range(len(shape)) for j in range(len(shape)) if i != j):
        if (shape[i], shape[j]) == (batch, length):
            first, last = min(i, j), max(i, j)
            copies = prod(shape[:first]), prod(shape[first + 1 : last]), prod(shape[last + 1 :])
            found.append(RowLayout(copies, i < j or 1 in (batch, length)))
    for i, size in enumerate(shape):
        if size == batch * length:
            found.append(RowLayout((prod(shape[:i]), 1, prod(shape[i + 1 :]))))
    return sorted(set(found), key=lambda layout: (not layout.batch_first, layout.copies))


def all_layouts(rows: int, grid: Sequence[int]) -> Iterator[RowLayout]:
    """Yields every layout of so many rows, with copies flattened into any axis; each order of tokens once."""
    count, rest = divmod(rows, max(prod(grid), 1))
    if rest or not 0 < count <= MAX_COPIES:
        return
    seen: set[bytes] = set()
    for batch_first in (True, False):
        for outside in _divisors(count):
            for between in _divisors(count // outside):
                layout = RowLayout((outside, between, count // outside // between), batch_first)
                key = layout.tokens(grid).numpy().tobytes()
                if key not in seen:
                    seen.add(key)
                    yield layout


def _divisors(number: int) -> list[int]:
    return [i for i in range(1, number + 1) if number % i == 0]


def row_mask(mask: Tensor, x: Tensor) -> Tensor:
    """Returns which rows of hidden states are real tokens, by shape alone: bool, the shape of `x` without its last dim.

    Args:
        mask: bool `[B, T]`, True at real tokens.
        x: a block's hidden states `[..., C]`. If none of its axes are the tokens', all its rows are real (an image's).
    """
    mask, shape = mask.to(x.device), x.shape[:-1]
    if mask.shape == shape:
        return mask
    layouts = layouts_of_axes(shape, mask.shape) if mask.numel() else []
    if not layouts or bool(mask.all()):
        return torch.ones(shape, dtype=torch.bool, device=x.device)
    return mask.reshape(-1)[layouts[0].tokens(mask.shape).to(x.device)].reshape(shape)


def probe_layout(
    read: Callable[[Tensor], Tensor | None], hidden: Tensor, layout: RowLayout, mask: Tensor
) -> RowLayout | None:
    """Finds the layout of a tensor inside a block by changing tokens of what the block is called with.

    Args:
        read: the block's hidden states → the tensor `[..., K]`, None if the block does not get there.
        hidden: the block's hidden states.
        layout: of `hidden`.
        mask: bool `[B, T]`, True at real tokens.

    Returns:
        the layout; None if none explains which rows change, or several do.

    Raises:
        OtherTokens: no row changed.
    """
    grid, x = tuple(mask.shape), read(hidden)
    if x is None:
        return None
    rows, here, changes = x.shape[:-1].numel(), layout.tokens(grid), {}
    for token in _probed(mask):
        changed = read(_changed(hidden, here == token))
        if changed is None or changed.shape != x.shape:  # tokens were routed elsewhere
            return None
        changes[token] = (changed.float() - x.float()).nan_to_num().square().reshape(rows, -1).sum(-1).cpu()
    if not any(bool(change.any()) for change in changes.values()):
        raise OtherTokens
    candidates = list(all_layouts(rows, grid))
    fitting = [one for one in candidates if _explains(one.tokens(grid), changes)]
    if len(candidates) > 1:
        fitting = [one for one in fitting if _stands_out(one.tokens(grid), changes)] or fitting
    return fitting[0] if len(fitting) == 1 else None


def _probed(mask: Tensor) -> list[int]:
    """Returns some real tokens, the last of them among them."""
    tokens = mask.reshape(-1).nonzero().flatten().tolist()
    return sorted({tokens[(len(tokens) - 1) * i // PROBED] for i in range(1, PROBED + 1)})


def _changed(hidden: Tensor, rows: Tensor) -> Tensor:
    """Returns hidden states with the channels of some rows in another order, and of other signs."""
    flat = hidden.reshape(-1, hidden.shape[-1]).clone()
    rows = rows.to(hidden.device)
    flat[rows] = -flat[rows].roll(1, -1)
    return flat.reshape(hidden.shape)


def _explains(tokens: Tensor, changes: Mapping[int, Tensor]) -> bool:
    """Whether all rows of each changed token changed."""
    return all(bool((change[tokens == token] > 0).all()) for token, change in changes.items())


def _stands_out(tokens: Tensor, changes: Mapping[int, Tensor]) -> bool:
    """Whether each changed token's own rows changed more than those of any other token."""
    sums = {token: torch.zeros(int(tokens.max()) + 1).index_add_(0, tokens, c) for token, c in changes.items()}
    return all(int(total.argmax()) == token for token, total in sums.items())


@dataclass(frozen=True)
class Rows:
    """What the rows of a tensor `[B, T, C]` are.

    Attributes:
        mask: bool `[B, T]` on the CPU, True at rows of real tokens.
        tokens: int64 `[B * T]`, which of the sample's tokens each row belongs to; None if the rows are the sample's
            tokens in order, or belong to none.
    """

    mask: Tensor
    tokens: Tensor | None = None


class RowFinder:
    """Finds what the rows are that a group's linears read. Probes the block, once, if the shape does not tell.

    Args:
        block: in full precision.
        group: the linears.
        inputs: what the block is called with.
        samples: the longest of them is probed.

    Attributes:
        reads_other_tokens: whether the rows are an encoder's tokens, or an image's, as [`layout`] found.
    """

    def __init__(self, block: nn.Module, group: Group, inputs: TargetInputs, samples: Sequence[int]):
        self.block, self.group, self.inputs = block, group, inputs
        self.samples, self.reads_other_tokens = samples, False

    def rows(self, sample: int, x: Tensor) -> Rows | None:
        """Returns what the rows of `x` `[..., C]` are; None if some are padding and it is not known which."""
        mask, shape = self.inputs.masks[sample], x.shape[:-1]
        if mask.shape == shape:
            return Rows(mask)
        layout = self.layout if mask.numel() else None
        if layout is not None and layout.fits(shape.numel(), mask.shape):
            if layout.is_plain:
                return Rows(mask)
            tokens = layout.tokens(mask.shape)
            return Rows(mask.reshape(1, -1)[:, tokens], tokens)
        if layout is not None or (mask.numel() and not self.reads_other_tokens and not mask.all()):
            return None
        return Rows(torch.ones(shape if len(shape) == 2 else (1, shape.numel()), dtype=torch.bool))

    @cached_property
    def layout(self) -> RowLayout | None:
        """The layout of the rows; None if it was not found."""
        sample = max(self.samples, key=lambda s: (self.inputs.masks[s].shape[0], self.inputs.masks[s].numel()))
        call, mask = self.inputs.full[sample], self.inputs.masks[sample]
        hidden = hidden_states(call)
        found = [] if hidden is None else layouts_of_axes(hidden.shape[:-1], tuple(mask.shape))
        if hidden is None or not found:
            return None

        def read(changed: Tensor) -> Tensor | None:
            args, kwargs = map_tensors(lambda t: changed if t is hidden else t, (call.args, call.kwargs))
            try:
                return enter(self.block, self.group, LayerInputs(args, kwargs))[0]
            except NotReached:
                return None

        try:
            return probe_layout(read, hidden, found[0], mask)
        except OtherTokens:
            self.reads_other_tokens = True
            return None
