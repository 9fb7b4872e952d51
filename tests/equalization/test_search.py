import math

import torch
from torch import Tensor

from tests import seeds
from transformers_qaig.equalization.fold import Group
from transformers_qaig.equalization.search import scale_at, search_scale
from transformers_qaig.rounding.quant_grid import minmax_grid


def test_scale_is_the_papers() -> None:
    a = torch.tensor([0.5, 2.0, 8.0])
    scale = scale_at(a, 0.5)
    torch.testing.assert_close(scale, a.sqrt() / math.sqrt(math.sqrt(8.0) * math.sqrt(0.5)))
    torch.testing.assert_close(scale.max() * scale.min(), torch.tensor(1.0))


def test_rho_zero_is_the_identity() -> None:
    torch.testing.assert_close(scale_at(torch.rand(32) + 0.1, 0.0), torch.ones(32))


def test_dead_channels_are_left_alone_and_do_not_shrink_the_others() -> None:
    a = torch.tensor([0.0, 1.0, 4.0])
    assert scale_at(a, 0.5)[0] == 1
    torch.testing.assert_close(scale_at(a, 0.5)[1:], scale_at(a[1:], 0.5))
    assert (scale_at(torch.zeros(4), 0.5) == 1).all()


def test_search_keeps_the_first_smallest_and_skips_what_is_not_finite() -> None:
    losses = iter([3.0, float("nan"), 1.0, 1.0, float("inf")] + [2.0] * 15)
    best = search_scale(torch.rand(8) + 0.1, lambda _: next(losses))
    assert (best.rho, best.loss, best.loss_before) == (0.1, 1.0, 3.0)


def test_nothing_finite_means_no_scaling() -> None:
    best = search_scale(torch.rand(8) + 0.1, lambda _: float("nan"))
    assert best.rho == 0
    assert (best.scale == 1).all()


def test_never_worse_than_no_scaling_and_better_with_an_outlier_channel() -> None:
    torch.manual_seed(seeds.seed())
    weight, x = torch.randn(64, 128), torch.randn(512, 128)
    x[:, 5] *= 60
    wanted = x @ weight.T

    def loss(scale: Tensor) -> float:
        scaled = weight * scale
        grid = minmax_grid(scaled, bits=3, group_size=64, sym=False, storage_dtype=torch.float32)
        return float((x @ (grid.quantize(scaled) / scale).T - wanted).abs().mean())

    best = search_scale(x.abs().mean(0), loss)
    assert best.rho > 0
    assert best.loss < 0.8 * best.loss_before


def test_scale_can_be_folded_where_heads_share_a_value() -> None:
    group = Group(("o",), "o", "v", (0, 1, 0, 1, -1))
    best = search_scale(torch.tensor([1.0, 2.0, 3.0, 8.0, 100.0]), lambda scale: -float(scale[1]), group=group)
    assert best.rho > 0
    assert best.scale[0] == best.scale[2]
    assert best.scale[1] == best.scale[3]
    assert best.scale[4] == 1
