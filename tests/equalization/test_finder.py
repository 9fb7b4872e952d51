"""Blocks of one kind are probed once; a weight that is used elsewhere is not folded into."""

from typing import Any

import pytest
from torch import nn

from transformers_qaig.equalization import finder as module
from transformers_qaig.equalization.finder import GroupFinder
from transformers_qaig.equalization.fold import Group


def block(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))


def test_blocks_of_the_same_shapes_share_one_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[nn.Module] = []

    def find_groups(one: nn.Module, *_: Any, seed: int) -> list[Group]:
        probed.append(one)
        return [Group(("1",), "1", "0", (0, 1, 2, 3))]

    monkeypatch.setattr(module, "find_groups", find_groups)
    finder, first = GroupFinder((), 3), block()
    groups = finder.groups(first, (), {})
    assert finder.groups(block(), (), {}) is groups
    assert len(probed) == 1
    finder.groups(block(8), (), {})
    assert len(probed) == 2


def test_a_scale_is_folded_only_where_nothing_else_reads_the_weights() -> None:
    one = block()
    group, orphan = Group(("1",), "1", "0", (0, 1, 2, 3)), Group(("1",), "1", None, (-1,) * 4)
    assert GroupFinder((), 0).foldable(one, group)
    assert not GroupFinder((), 0).foldable(one, orphan)
    for shared in (one[0].weight, one[1].weight):
        finder = GroupFinder({id(shared)}, 0)
        assert not finder.foldable(one, group)
        assert finder.is_shared(shared)
