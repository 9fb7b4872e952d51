"""Moves a per-channel scale E from the weights that read a tensor into the op that produced it.

For y = W x with x = P(h), the function stays the same under W ← W·diag(E), P ← diag(1/E)·P. All arithmetic is
fp32; the result is cast back to each parameter's dtype.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """Linears that read one tensor, and the op that can absorb 1/E.

    Attributes:
        linears: Names, relative to the block, of every `nn.Linear` that reads this very tensor, in execution order.
        module: f_s, the lowest common ancestor of the linears: the linear itself if there is one, "" for the block.
        producer: Name of the norm or linear that can absorb 1/E; `None` if nothing can, so E must be 1.
        channels: For each input column of the linears, the producer's output channel it comes from, or -1 where it
            comes from elsewhere and E must be 1. Columns with one channel (heads that share a value) share one E.
        plus_one: The producer multiplies by (1 + weight), so its weight becomes (1 + weight)/E - 1.
        runs: How often the linears run in one call of the block. If several times, nothing absorbs a scale.
        run: Of these, the one that is meant.
    """

    linears: tuple[str, ...]
    module: str
    producer: str | None
    channels: tuple[int, ...]
    plus_one: bool = False
    runs: int = 1
    run: int = 0


def tie(statistic: Tensor, group: Group) -> Tensor:
    """Makes a per-column statistic foldable.

    Args:
        statistic: [in_features], for example the mean magnitude of each input column, or a scale.
        group: its `channels` say which columns share a producer channel.

    Returns:
        [in_features], dtype of `statistic`: its mean over the columns that share a producer channel, and 1 where
        nothing can absorb a scale.
    """
    channels = _channels(group, statistic, "statistic")
    mapped = channels >= 0
    tied = torch.ones_like(statistic)
    if mapped.any():
        _, column_to_channel, count = channels[mapped].unique(return_inverse=True, return_counts=True)
        total = torch.zeros(len(count), dtype=statistic.dtype, device=statistic.device)
        total.index_add_(0, column_to_channel, statistic[mapped])
        tied[mapped] = (total / count)[column_to_channel]
    return tied


@torch.no_grad()
def fold(block: nn.Module, group: Group, scale: Tensor, *, skip: Collection[str] = ()) -> None:
    """Folds E in place: columns of the group's linears *= E, channels of its producer /= E.

    A `Parameter` that is also used elsewhere in the model (tied, or shared by two blocks) changes there too. The caller
    leaves such groups out.

    Args:
        block: The module that the group's names are relative to.
        group: The linears, and the producer that absorbs 1/E.
        scale: E, [in_features], positive and finite; equal on columns of one channel, 1 where the channel is -1.
        skip: Names of modules to leave as they are, such as linears whose weights already hold W·E.

    Raises:
        ValueError: if `scale` cannot be folded into this group; nothing has been changed then.
    """
    channels = _channels(group, scale, "scale")
    scale = scale.detach().float()
    if not (torch.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(f"scale for {group.linears} must be positive and finite; clamp it before folding")
    if (scale[channels < 0] != 1).any():
        why = "has no producer" if group.producer is None else f"has columns that {group.producer} does not produce"
        raise ValueError(f"the group {group.linears} {why}: scale must be 1 there; use tie(scale, group)")
    mapped = channels >= 0
    per_channel = torch.ones(int(channels.max()) + 1 if mapped.any() else 0, device=scale.device)
    per_channel[channels[mapped]] = scale[mapped]
    if not torch.allclose(per_channel[channels[mapped]], scale[mapped], rtol=1e-6, atol=0):
        raise ValueError(
            f"scale for {group.linears} differs between columns that come from one channel of {group.producer}; "
            "use tie(scale, group)"
        )
    for name in group.linears:
        if name not in skip:
            weight = block.get_submodule(name).get_parameter("weight")
            weight.copy_(weight.float() * scale.to(weight.device))
    if group.producer is not None and group.producer not in skip:
        absorb(block.get_submodule(group.producer), per_channel, plus_one=group.plus_one)


@torch.no_grad()
def absorb(producer: nn.Module, scale: Tensor, *, plus_one: bool = False) -> None:
    """Divides a producer's first output channels by `scale` [n], n ≤ its number of channels, in place.

    The weight is [channels] (a norm) or [channels, in_features] (a linear); the bias, if any, is [channels].
    """
    n = len(scale)
    weight, bias = producer.get_parameter("weight"), getattr(producer, "bias", None)
    offset = 1.0 if plus_one else 0.0
    divisor = scale.to(weight.device).view(-1, *[1] * (weight.dim() - 1))
    weight[:n].copy_((weight[:n].float() + offset) / divisor - offset)
    if isinstance(bias, Tensor):
        bias[:n].copy_(bias[:n].float() / scale.to(bias.device))


def _channels(group: Group, vector: Tensor, what: str) -> Tensor:
    if vector.shape != (len(group.channels),):
        raise ValueError(f"{what} must have shape [{len(group.channels)}] for {group.linears}, got {[*vector.shape]}")
    return torch.tensor(group.channels, device=vector.device)
