"""A sub-block f_s: what happens from the tensor that a group of linears reads to where their outputs meet again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..equalization.fold import Group
from ..execution.interceptor import LayerInputs, TargetInputs, map_tensors
from ..rounding.quant_grid import fake_quantize_tokens
from ..utils.finite import is_finite
from .exclusions import NotFinite

MAX_TOKENS = 8192
"""Tokens of several samples that are run at once where a sub-block treats each token by itself."""


@dataclass
class GroupInputs:
    """
    One sample at a sub-block's entrance, or several in a row. Pieces wait on the CPU; `loaded` gives one to work with.

    Attributes:
        samples: which ones.
        x: [B, T, C], what the group's linears read in the full-precision stream. Waiting in the model's dtype.
        x_q: [B, T, C], the same in the quantized stream.
        real: bool [B, T], True at real tokens.
        lengths: tokens of each sequence, in the order in which they stand in [B * T].
        args, kwargs: what the sub-block's module was called with.
        weights: λ fp32 [B, T]; zero at padding.
    """

    samples: list[int]
    x: Tensor
    x_q: Tensor
    real: Tensor
    lengths: list[int]
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    weights: Tensor = field(default_factory=lambda: torch.empty(0))

    def loaded(self, device: torch.device) -> GroupInputs:
        """The same piece on `device`, all its floats in fp32."""
        x, x_q, real, args, kwargs, weights = map_tensors(
            lambda t: t.to(device, torch.float32) if t.is_floating_point() else t.to(device),
            (self.x, self.x_q, self.real, self.args, self.kwargs, self.weights),
        )
        return replace(self, x=x, x_q=x_q, real=real, args=args, kwargs=kwargs, weights=weights)

    def importance(self) -> dict[int, Tensor]:
        """λ [T] of each sample's first sequence."""
        return {sample: rows[0] for sample, rows in self.weights_of_each().items()}

    def weights_of_each(self) -> dict[int, Sequence[Tensor]]:
        """λ [T] of every sequence of each sample."""
        per_sample = len(self.lengths) // len(self.samples)
        rows = self.weights.reshape(-1).split(self.lengths)
        return {sample: rows[i * per_sample : (i + 1) * per_sample] for i, sample in enumerate(self.samples)}


class _Reached(Exception):
    """The entrance was reached: the rest of the block need not run."""


class NotReached(RuntimeError):
    """A sample's call runs past a sub-block."""


def enter(block: nn.Module, group: Group, call: LayerInputs) -> tuple[Tensor, tuple, dict[str, Any]]:
    """
    Run `block` on `call` up to the entrance of `group`'s sub-block.

    Returns:
        what the group's linears read, [B, T, C] in the block's dtype, and the sub-block's arguments.

    Raises:
        NotReached: the call never gets there.
    """
    seen: dict[str, Any] = {}

    def at_module(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen["args"], seen["kwargs"] = args, kwargs

    def at_linear(module: nn.Module, args: tuple) -> None:
        raise _Reached(args[0])

    handles = [
        block.get_submodule(group.module).register_forward_pre_hook(at_module, with_kwargs=True),
        block.get_submodule(group.linears[0]).register_forward_pre_hook(at_linear),
    ]
    try:
        call = call.to(next(block.parameters()).device)
        with torch.no_grad():
            block(*call.args, **call.kwargs)
    except _Reached as reached:
        return reached.args[0].detach(), seen["args"], seen["kwargs"]
    finally:
        for handle in handles:
            handle.remove()
    raise NotReached(f"the call does not reach {group.linears[0]!r}")


def run(
    block: nn.Module,
    group: Group,
    piece: GroupInputs,
    x: Tensor,
    weights: Mapping[str, Tensor] | None = None,
    activation_bits: int = 16,
) -> Tensor:
    """
    f_s(x, w): the sub-block's output with `x` where its linears read their input.

    Args:
        block: the block in fp32; not changed.
        group: which sub-block of it.
        piece: loaded; the rest of the sub-block's arguments (masks, rotary embeddings).
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
        args, kwargs = ((x,), {}) if len(piece.samples) > 1 else (piece.args, piece.kwargs)
        output = torch.func.functional_call(module, replaced, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    first = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    return first if first.ndim == 3 else first.reshape(1, -1, first.shape[-1])


def gather_group_inputs(
    original: nn.Module,
    group: Group,
    blocks: tuple[nn.Module, nn.Module],
    streams: TargetInputs,
    samples: Sequence[int],
) -> list[GroupInputs]:
    """
    The samples at a sub-block's entrance, in both streams.

    Args:
        original: the block in fp32.
        group: which sub-block.
        blocks: the block in full precision, and quantized so far.
        streams: what they are called with.
        samples: which ones.

    Returns:
        pieces; none if a sample does not get there, or not with one row a token (experts see a choice of the tokens).
        What a tower reads without a batch dimension, because the block itself is called so, is one sequence.

    Raises:
        NotFinite: a real token of a sample is not finite there. (One of the padding is set to zero.)
    """
    pieces, calls = [], (streams.calls, streams.calls_q)
    for s in samples:
        try:
            (x, args, kwargs), (x_q, _, _) = (enter(b, group, c[s]) for b, c in zip(blocks, calls))
        except NotReached:
            return []
        if x.ndim != _rank(streams.calls[s]) or x.shape != x_q.shape:
            return []
        x, x_q = (t if t.ndim == 3 else t.reshape(1, -1, t.shape[-1]) for t in (x, x_q))
        what = f"hidden states that {group.linears[0]} reads"
        x = _finite(x, streams.masks[s], s, f"the full-precision {what}")
        x_q = _finite(x_q, streams.masks[s], s, f"the quantized {what}")
        x, x_q, args, kwargs = map_tensors(lambda t: t.cpu(), (x, x_q, args, kwargs))
        pieces.append(GroupInputs([s], x, x_q, mask_for(streams.masks[s], x), [x.shape[1]] * x.shape[0], args, kwargs))
    return merge(original, group, pieces)


def _rank(call: LayerInputs) -> int:
    """Dimensions of the hidden states that a block is called with."""
    leaves = tree_leaves((call.args, call.kwargs))
    return next((leaf.ndim for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()), 3)


def mask_for(mask: Tensor, x: Tensor) -> Tensor:
    """The sample's mask where `x` has its tokens, else (another sequence, say an image's states) all True."""
    mask = mask.to(x.device)
    return mask if mask.shape == x.shape[:2] else torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)


def is_finite_where(mask: Tensor, x: Tensor) -> bool:
    """Whether x is finite at the sample's real tokens."""
    return is_finite(x) or is_finite(x[mask_for(mask, x)])


def _finite(x: Tensor, mask: Tensor, sample: int, where: str) -> Tensor:
    if is_finite(x):
        return x
    if not is_finite_where(mask, x):
        raise NotFinite(sample, where)
    return x.nan_to_num(0.0, 0.0, 0.0)


def merge(block: nn.Module, group: Group, pieces: Sequence[GroupInputs]) -> list[GroupInputs]:
    """Fewer, longer pieces if the sub-block treats each token by itself, so that it runs on many at once."""
    device = next(block.parameters()).device
    if not pieces or not is_tokenwise(block, group, pieces[0].loaded(device)):
        return list(pieces)
    return [
        row[0]
        if len(row) == 1
        else GroupInputs(
            [s for piece in row for s in piece.samples],
            torch.cat([_in_one_row(piece.x) for piece in row], 1),
            torch.cat([_in_one_row(piece.x_q) for piece in row], 1),
            torch.cat([_in_one_row(piece.real) for piece in row], 1),
            [length for piece in row for length in piece.lengths],
        )
        for row in _rows(pieces)
    ]


@torch.no_grad()
def is_tokenwise(block: nn.Module, group: Group, piece: GroupInputs) -> bool:
    """Whether the output at a token depends on the input at that token alone: tried on a changed first and last."""
    if isinstance(block.get_submodule(group.module), nn.Linear):
        return True
    tensors = [leaf for leaf in tree_leaves((piece.args, piece.kwargs)) if isinstance(leaf, Tensor)]
    if len(tensors) != 1 or len(piece.args) != 1 or piece.x.shape[1] < 2:
        return False
    if tensors[0].shape not in (piece.x.shape, piece.x.shape[1:]):
        return False
    halves = [run(block, group, piece, half) for half in (piece.x, torch.cat([piece.x[:, :-1], -piece.x[:, -1:]], 1))]
    ends = [run(block, group, piece, half) for half in (piece.x, torch.cat([-piece.x[:, :1], piece.x[:, 1:]], 1))]
    if halves[0].shape[:2] != piece.x.shape[:2]:
        return False
    size = halves[0].abs().max() * 1e-5
    return bool((halves[0] - halves[1])[:, :-1].abs().max() <= size and (ends[0] - ends[1])[:, 1:].abs().max() <= size)


def _rows(pieces: Sequence[GroupInputs]) -> Iterator[list[GroupInputs]]:
    row: list[GroupInputs] = []
    for piece in pieces:
        if row and sum(p.real.numel() for p in row) + piece.real.numel() > MAX_TOKENS:
            yield row
            row = []
        row.append(piece)
    yield row


def _in_one_row(tensor: Tensor) -> Tensor:
    return tensor.reshape(1, -1, *tensor.shape[2:])
