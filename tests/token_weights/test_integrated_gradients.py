import pytest
import torch
from torch import Tensor

from tests import seeds
from tests.tolerance import assert_close
from transformers_qaig.token_weights.integrated_gradients import (
    flatten_weights,
    qig,
    qig_linear,
    weights_from_attribution,
)


def _linear_case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = seeds.generator(seed)
    x, x0 = (torch.randn(2, 7, 16, generator=generator) for _ in range(2))
    return x, x0, 0.1 * torch.randn(12, 16, generator=generator)


@pytest.mark.parametrize("baseline", ["quantized", "zero"])
def test_closed_form_equals_a_fine_quadrature(baseline: str) -> None:
    x, x0, error = _linear_case()
    x0 = x0 if baseline == "quantized" else torch.zeros_like(x0)
    slow = qig(lambda point: point @ error.T, x, x0, steps=4000)
    torch.testing.assert_close(qig_linear(x, x0, error), slow, rtol=0, atol=2e-3 * float(slow.abs().max()))


def test_closed_form_is_complete() -> None:
    x, x0, error = _linear_case()

    def field(point: Tensor) -> Tensor:
        return (point @ error.T).abs().mean(-1).sum((-1,))

    attribution = qig_linear(x, x0, error)
    terms = 16 + 12 + attribution[0].numel()
    assert_close(attribution.sum((-1, -2)), field(x) - field(x0), terms, magnitude=attribution.abs().sum((-1, -2)))


def test_quadrature_is_complete_on_a_module_that_mixes_tokens() -> None:
    torch.manual_seed(seeds.seed(1))
    attention = torch.nn.MultiheadAttention(16, 2, batch_first=True).eval()
    other = torch.nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x, x0 = torch.randn(2, 5, 16), torch.randn(2, 5, 16)

    def difference(point: Tensor) -> Tensor:
        return attention(point, point, point)[0] - other(point, point, point)[0]

    def field(point: Tensor) -> Tensor:
        return difference(point).abs().mean(-1).sum(-1)

    total = qig(difference, x, x0, steps=256).sum((-1, -2))
    torch.testing.assert_close(total, field(x) - field(x0), rtol=1e-2, atol=1e-3)


def test_gradient_of_the_sum_credits_a_token_for_harm_done_to_later_ones() -> None:
    # y_1 = x_0: only token 1's output differs, and only because of token 0's input.
    def difference(point: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(point[:, 0]), point[:, 0]], dim=1)

    attribution = qig(difference, torch.ones(1, 2, 4), torch.zeros(1, 2, 4))
    assert attribution[0, 0].abs().sum() > 0
    assert attribution[0, 1].abs().sum() == 0


def test_token_weights_are_one_on_average_and_nothing_at_padding() -> None:
    attribution = torch.rand(3, 10, 8)
    mask = torch.ones(3, 10, dtype=torch.bool)
    mask[1, 6:] = False
    weights = weights_from_attribution(attribution, mask)
    assert (weights[~mask] == 0).all()
    assert_close(weights.sum(1), mask.sum(1).float(), 8 + 10 + 10)


def test_padding_does_not_change_the_weights_of_real_tokens() -> None:
    attribution = torch.rand(1, 10, 8)
    padded = torch.cat([attribution, 100 * torch.rand(1, 5, 8)], dim=1)
    mask = torch.arange(15)[None] < 10
    alone = weights_from_attribution(attribution, torch.ones(1, 10, dtype=torch.bool))
    assert_close(weights_from_attribution(padded, mask)[:, :10], alone, 8 + 10)


def test_outliers_are_clipped_at_the_interquartile_range() -> None:
    attribution = torch.ones(1, 9, 1) * torch.arange(1.0, 10.0)[None, :, None]
    attribution[0, 8] = 1e6
    weights = weights_from_attribution(attribution, torch.ones(1, 9, dtype=torch.bool))
    # q1 = 3, q3 = 7: nothing above 7 + 1.5 * 4 = 13
    torch.testing.assert_close(weights[0, 8] / weights[0, 0], torch.tensor(13.0))
    unclipped = weights_from_attribution(attribution, torch.ones(1, 9, dtype=torch.bool), clip=False)
    assert unclipped[0, 8] > 8.9


@pytest.mark.parametrize("fill", [0.0, float("nan"), float("inf")])
def test_nothing_to_go_by_means_uniform(fill: float) -> None:
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    weights = weights_from_attribution(torch.full((2, 6, 3), fill), mask)
    torch.testing.assert_close(weights, mask.float())


def test_a_few_values_that_are_not_finite_are_ignored() -> None:
    attribution = torch.rand(1, 10, 4)
    attribution[0, 2] = float("nan")
    weights = weights_from_attribution(attribution, torch.ones(1, 10, dtype=torch.bool))
    assert torch.isfinite(weights).all()
    assert weights.std() > 0


def test_tempered_weights_keep_half_of_the_samples_effective() -> None:
    weights = torch.zeros(400)
    weights[:300] = torch.rand(300).mul(8).exp()
    soft = flatten_weights(weights)
    effective = soft.sum().square() / soft.square().sum() / 300
    assert effective == pytest.approx(0.5, abs=1e-3)
    assert (soft[300:] == 0).all()
    assert float(soft.sum()) == pytest.approx(300, rel=1e-4)
    power = soft[:300].log().diff() / weights[:300].log().diff()
    torch.testing.assert_close(power, power.mean().expand_as(power), rtol=1e-2, atol=1e-2)
    even = torch.rand(50) + 1
    assert_close(flatten_weights(even), even / even.mean(), 50)
    assert (flatten_weights(torch.zeros(5)) == 0).all()
