"""What one process enters is joined as several processes would join it; a rank without a term has an empty one."""

import pytest
import torch
from torch import Tensor, nn

from transformers_qaig.distributed import ALONE
from transformers_qaig.equalization.fold import Group
from transformers_qaig.execution.group_inputs import GroupInputs, NotReached
from transformers_qaig.execution.spread import Entered, no_tokens, spread

GROUP = Group(("up",), "", None, (-1,) * 4)


class Mixing(nn.Module):
    """A sub-block whose tokens see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x) + self.up(x).mean(1, keepdim=True)


def sample(index: int, tokens: int) -> GroupInputs:
    x = torch.full((1, tokens, 4), float(index))
    return GroupInputs([index], x, x, torch.ones(1, tokens, dtype=torch.bool), [tokens], args=(x,))


def test_samples_whose_tokens_see_each_other_stay_apart() -> None:
    terms = spread(Mixing(), GROUP, lambda: Entered([sample(3, 2), sample(5, 4)]), [3, 5], ALONE)
    assert [one.samples for one in terms] == [[3], [5]]


def test_samples_whose_tokens_do_not_are_joined_in_order() -> None:
    block = nn.Sequential()
    block.add_module("up", nn.Linear(4, 4))
    group = Group(("up",), "up", None, (-1,) * 4)
    (one,) = spread(block, group, lambda: Entered([sample(3, 2), sample(5, 4)]), [3, 5], ALONE)
    assert one.samples == [3, 5]
    assert one.hidden.flatten()[::4].tolist() == [3.0] * 2 + [5.0] * 4


def test_nothing_entered_says_why() -> None:
    with pytest.raises(NotReached, match="no sample gets there"):
        spread(Mixing(), GROUP, lambda: Entered([], "no sample gets there"), [3], ALONE)


def test_a_rank_without_a_term_has_inputs_without_tokens() -> None:
    assert no_tokens(4).hidden.shape == (1, 0, 4)
    assert not no_tokens(4).mask.numel()
