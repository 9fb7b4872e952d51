"""A linear sees tokens whatever the rank of its input, and padding never counts."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from transformers_qaig.equalization.fold import Group
from transformers_qaig.execution.block_outputs import OutputError
from transformers_qaig.execution.gathering import gather_group_inputs
from transformers_qaig.execution.group_inputs import GroupInputs, NotReached
from transformers_qaig.execution.layer_inputs import LayerInputs, TargetInputs
from transformers_qaig.execution.token_rows import layouts_of_axes, row_mask

WIDTH, HEADS = 12, 3
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "[B * T, C]": lambda x: x.flatten(0, 1),
    "[T, B, C]": lambda x: x.transpose(0, 1),
    "[T * B, C]": lambda x: x.transpose(0, 1).flatten(0, 1),
    "[B, 1, T, C]": lambda x: x[:, None],
    "[B, T, H, D]": lambda x: x.unflatten(-1, (HEADS, -1)),
    "[B, H, T, D]": lambda x: x.unflatten(-1, (HEADS, -1)).transpose(1, 2),
    "[B * H, T, D]": lambda x: x.unflatten(-1, (HEADS, -1)).transpose(1, 2).flatten(0, 1),
    "[B * T * H, D]": lambda x: x.reshape(-1, WIDTH // HEADS),
    "[H, B * T, D]": lambda x: x.reshape(-1, HEADS, WIDTH // HEADS).transpose(0, 1),
}


class Viewing(nn.Module):
    """Mixes tokens as asked, and gives a linear some view of them."""

    def __init__(self, view: Callable[[Tensor], Tensor], mixing: str):
        super().__init__()
        self.view, self.mixing = view, mixing
        self.linear = nn.Linear(view(torch.empty(2, 5, WIDTH)).shape[-1], 8)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.mixing == "causal":
            hidden = hidden + hidden.cumsum(1)
        elif self.mixing == "both ways":
            hidden = hidden + 0.3 * hidden.mean(1, keepdim=True)
        self.linear(self.view(hidden))
        return hidden


def gathered(block: nn.Module, hidden: dict[int, Tensor], masks: list[Tensor]) -> dict[int, GroupInputs]:
    """Every sample's inputs of the block's only linear, unmerged."""
    group = Group(("linear",), "linear", None, (-1,) * block.linear.in_features)
    calls = {sample: LayerInputs((x,), {}) for sample, x in hidden.items()}
    found = {}
    for sample in calls:
        inputs = TargetInputs(calls, calls, masks)
        (found[sample],) = gather_group_inputs(block, group, (block, block), inputs, [sample])
    return found


@pytest.mark.parametrize("mixing", ["none", "causal", "both ways"])
@pytest.mark.parametrize("view", VIEWS)
def test_padding_is_found_among_the_rows(view: str, mixing: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(2, 5, WIDTH, generator=generator), torch.ones(2, 5, dtype=torch.bool)
    mask[1, :2] = False
    marked = torch.where(mask[..., None], 1.0, 2.0).expand(x.shape)
    found = gathered(Viewing(VIEWS[view], mixing), {0: x}, [mask])[0]
    assert torch.equal(found.mask.reshape(-1), VIEWS[view](marked)[..., 0].reshape(-1) == 1)


def test_the_layout_of_the_longest_sample_holds_for_all() -> None:
    block = Viewing(VIEWS["[B, H, T, D]"], "causal")
    group = Group(("linear",), "linear", None, (-1,) * 4)
    calls = {s: LayerInputs((torch.randn(1, n, WIDTH),), {}) for s, n in enumerate((3, 7, 4))}
    masks = [torch.ones(1, n, dtype=torch.bool) for n in (3, 7, 4)]
    masks[2][0, 0] = False
    (found,) = gather_group_inputs(block, group, (block, block), TargetInputs(calls, calls, masks), range(3))
    assert found.lengths == [9, 21, 12]
    assert found.mask[0, -12:].tolist() == [False, True, True, True] * 3
    found.token_weights = torch.arange(42.0)[None]
    assert found.first_sequence_weights()[1].tolist() == [9.0 + 7 + t for t in range(7)]  # the mean of three heads


def test_rows_that_match_no_token_count_alike_where_nothing_is_padding() -> None:
    class Routed(Viewing):
        def forward(self, hidden: Tensor) -> Tensor:
            self.linear(hidden[hidden.mean(-1) > 0])
            return hidden

    block, x = Routed(VIEWS["[B * T, C]"], "none"), torch.randn(1, 9, WIDTH, generator=torch.manual_seed(0))
    whole, padded = torch.ones(1, 9, dtype=torch.bool), torch.ones(1, 9, dtype=torch.bool)
    padded[0, 0] = False
    found = gathered(block, {0: x}, [whole])[0]
    assert 0 < found.mask.numel() < 9
    assert found.mask.all()
    with pytest.raises(NotReached, match="match no token"):
        gathered(block, {0: x}, [padded])


def test_tokens_of_another_model_are_all_real() -> None:
    class Crossing(Viewing):
        def forward(self, hidden: Tensor) -> Tensor:
            self.linear(torch.ones(2, 4, WIDTH))
            return hidden

    mask = torch.tensor([[True, True, False], [True, False, False]])
    found = gathered(Crossing(VIEWS["[B * T, C]"], "none"), {0: torch.randn(2, 3, WIDTH)}, [mask])[0]
    assert found.mask.shape == (2, 4)
    assert found.mask.all()


def test_samples_that_do_not_get_there_are_left_out() -> None:
    class Skipping(Viewing):
        def forward(self, hidden: Tensor) -> Tensor:
            return self.linear(hidden) if hidden[0, 0, 0] > 0 else hidden

    block = Skipping(VIEWS["[B * T, C]"], "none")
    group = Group(("linear",), "linear", None, (-1,) * WIDTH)
    calls = {s: LayerInputs((torch.full((1, 3, WIDTH), value),), {}) for s, value in enumerate((1.0, -1.0, 2.0))}
    masks = [torch.ones(1, 3, dtype=torch.bool)] * 3
    inputs = TargetInputs(calls, calls, masks)
    (found,) = gather_group_inputs(block, group, (block, block), inputs, range(3))
    assert found.samples == [0, 2]
    with pytest.raises(NotReached, match="no sample gets there"):
        gather_group_inputs(block, group, (block, block), inputs, [1])


@pytest.mark.parametrize("shape", [(2, 5, 4), (4, 2, 5), (10,), (2, 5), (5, 2, 4)])
def test_hidden_states_of_any_rank_have_their_padding_masked(shape: tuple[int, ...]) -> None:
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 0] = False
    rows = row_mask(mask, torch.empty(*shape, 3))
    assert rows.shape == shape
    assert (~rows).sum() == max(1, rows.numel() // 10)


def test_the_output_error_of_several_streams_leaves_padding_out() -> None:
    mask, b = torch.tensor([[False, True, True]]), torch.ones(4, 1, 3, 2)
    a, error = b.clone(), OutputError()
    a[:, 0, 0] = 99.0
    a[0, 0, 1] = 2.0
    error.add(a, b, mask)
    assert error.value == pytest.approx(2 / 16)


def test_axes_are_found_in_their_likeliest_order() -> None:
    assert layouts_of_axes((1, 7, 4), (1, 7))[0].copies == (1, 1, 4)
    assert layouts_of_axes((4, 1, 7), (1, 7))[0].copies == (4, 1, 1)
    assert layouts_of_axes((3, 4), (1, 7)) == []
