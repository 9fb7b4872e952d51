"""What the probe finds in a hand-made block."""

from torch import nn

from tests.equalization.blocks import HEADS, KV, D, X
from transformers_qaig.equalization import Group, find_groups


def probe(block: nn.Module, *args, **kwargs) -> dict[tuple[str, ...], Group]:
    return {group.linears: group for group in find_groups(block, args or (X,), kwargs)}


def producers(block: nn.Module, *args, **kwargs) -> dict[tuple[str, ...], str | None]:
    return {linears: group.producer for linears, group in probe(block, *args, **kwargs).items()}


def repeat_of_heads(first: int = 0) -> tuple[int, ...]:
    return tuple(first + head // (HEADS // KV) * D + d for head in range(HEADS) for d in range(D))
