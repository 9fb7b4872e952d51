import pytest
import torch
from torch import Tensor

from tests.tolerance import assert_close
from transformers_qaig.nn.linear import QAIGLinear
from transformers_qaig.rounding.gptq import gptq, gptq_on_best_grid
from transformers_qaig.rounding.hessian import DAMPING, Hessian, second_moment
from transformers_qaig.rounding.quant_grid import QuantGrid, minmax_grid

N, K, GROUP = 24, 128, 32
HALFWAY = 1e-5
"""In code steps: what float32 may make of a value."""


def _case(tokens: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, inputs with channels that go together, H."""
    weight = torch.randn(N, K)
    x = torch.randn(1, tokens, 32) @ torch.randn(32, K) + 0.3 * torch.randn(1, tokens, K)
    x = x * torch.rand(K).mul(3).exp()
    return weight, x, second_moment([(x, torch.ones(1, tokens))])


def _grid(weight: Tensor, bits: int = 3, group_size: int = GROUP, sym: bool = False, **more) -> QuantGrid:
    return minmax_grid(weight, bits=bits, group_size=group_size, sym=sym, storage_dtype=torch.bfloat16, **more)


def _error(weight: Tensor, values: Tensor, hessian: Tensor) -> float:
    e = (values - weight).double()
    return float((e @ hessian.double() * e).sum())


def _slow(weight: Tensor, hessian: Tensor, grid: QuantGrid) -> tuple[Tensor, Tensor, list[int]]:
    """Codes by the definition in float64: after each column the rest is solved for anew, with what is rounded fixed.

    Also how far each value was from halfway between two codes, 0 to ½, and the order of the columns.
    """
    h = hessian.double() + DAMPING * hessian.diagonal().double().mean() * torch.eye(K, dtype=torch.float64)
    order = hessian.diagonal().argsort(descending=True, stable=True).tolist()
    w, codes = weight.double().clone(), torch.zeros(N, K, dtype=torch.uint8)
    from_halfway = torch.zeros(N, K, dtype=torch.float64)
    size = K // grid.scale.shape[1]
    for position, j in enumerate(order):
        g = j // size
        steps = w[:, j] / grid.encode_scale[:, g].double()
        from_halfway[:, j] = 0.5 - (steps - steps.round()).abs()
        code = (steps.round() + grid.zero_point[:, g].double()).clamp(0, grid.max_code)
        codes[:, j] = code.to(torch.uint8)
        change = (code - grid.zero_point[:, g].double()) * grid.scale[:, g].double() - w[:, j]
        w[:, j] += change
        left = order[position + 1 :]
        if left:  # min over d of (change, d) H (change, d)ᵀ
            solved = torch.linalg.solve(h[left][:, left], h[left, j])
            w[:, left] -= change[:, None] * solved
    return codes, from_halfway, order


@pytest.mark.parametrize("group_size", [GROUP, -1])
@pytest.mark.parametrize("sym", [False, True])
def test_equals_a_slow_reimplementation(group_size: int, sym: bool) -> None:
    weight, _, hessian = _case()
    grid = _grid(weight, group_size=group_size, sym=sym)
    rounding = gptq(weight, Hessian.of(hessian), grid)
    codes, from_halfway, order = _slow(weight, hessian, grid)
    differs = (rounding.codes != codes)[:, order]
    # A value halfway between two codes may go either way, and what follows in its row with it.
    for row in differs.any(1).nonzero().flatten().tolist():
        assert from_halfway[row, order[int(differs[row].int().argmax())]] < HALFWAY
    assert differs.any(1).sum() <= 1
    assert _error(weight, rounding.values, hessian) < 0.6 * _error(weight, grid.quantize(weight), hessian)


def test_with_a_hessian_that_says_nothing_it_rounds_to_nearest() -> None:
    weight, _, _ = _case()
    grid = _grid(weight, bits=2)
    rounding = gptq(weight, Hessian.of(torch.eye(K)), grid)
    assert torch.equal(rounding.codes, grid.encode(weight))
    assert torch.equal(rounding.source, weight)


def test_what_was_rounded_is_given_back() -> None:
    weight, _, hessian = _case()
    grid = _grid(weight, gain=torch.full((N, K // GROUP), 1.05))
    rounding = gptq(weight, Hessian.of(hessian), grid)
    assert torch.equal(grid.encode(rounding.source), rounding.codes)
    assert (rounding.source != weight).float().mean() > 0.9


def test_order_by_activation_pays_and_the_codes_stay_in_place() -> None:
    weight, _, hessian = _case()
    grid = _grid(weight)
    ordered = gptq(weight, Hessian.of(hessian), grid)
    plain = gptq(weight, Hessian.of(hessian, act_order=False), grid)
    assert _error(weight, ordered.values, hessian) < _error(weight, plain.values, hessian)
    layer = QAIGLinear.from_codes(
        ordered.codes, grid.scale.bfloat16(), grid.zero_point.to(torch.uint8), bits=3, group_size=GROUP
    )
    assert torch.equal(layer.dequantize(torch.float32), ordered.values)


def test_channels_never_seen_are_rounded_to_nearest_and_left_out() -> None:
    weight, x, _ = _case()
    x[..., 5::16] = 0
    hessian = second_moment([(x, torch.ones(x.shape[:2]))])
    grid = _grid(weight)
    rounding = gptq(weight, Hessian.of(hessian), grid)
    assert torch.equal(rounding.source[:, 5::16], weight[:, 5::16])
    assert torch.equal(rounding.codes[:, 5::16], grid.encode(weight)[:, 5::16])
    assert torch.isfinite(rounding.source).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_never_reaches_a_weight(bad: float) -> None:
    weight, x, hessian = _case()
    x[0, 7, 3] = bad
    weights = torch.ones(1, 400)
    weights[0, 7] = 0
    assert_close(second_moment([(x, torch.ones(1, 400))]), second_moment([(x.nan_to_num(0, 0, 0), weights)]), 400)
    hessian[3, 4] = bad
    grid = _grid(weight)
    rounding = gptq(weight, Hessian.of(hessian), grid)
    assert torch.equal(rounding.codes, grid.encode(weight))
    assert torch.equal(rounding.source, weight)


def test_fewer_tokens_than_channels_are_damped() -> None:
    weight, _, hessian = _case(tokens=40)
    grid = _grid(weight)
    rounding = gptq(weight, Hessian.of(hessian), grid)
    assert torch.isfinite(rounding.source).all()
    assert _error(weight, rounding.values, hessian) < 0.5 * _error(weight, grid.quantize(weight), hessian)


def test_shapes_that_do_not_fit_are_refused() -> None:
    weight, _, hessian = _case()
    with pytest.raises(ValueError, match="do not fit"):
        gptq(weight, Hessian.of(hessian[:64, :64]), _grid(weight))


def test_each_row_gets_the_grid_that_serves_it_best(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _, moment = _case()
    hessian = Hessian.of(moment)
    grids = [_grid(weight, bits=2, shrink=shrink) for shrink in (1.0, 0.8, 0.6)]
    damped = moment + DAMPING * moment.diagonal().mean() * torch.eye(K)
    errors = [gptq(weight, hessian, grid).values - weight for grid in grids]
    losses = torch.stack([(e @ damped * e).sum(-1) for e in errors])
    assert len(losses.argmin(0).unique()) > 1  # not the same one for all
    monkeypatch.setattr("transformers_qaig.rounding.gptq.MAX_ELEMENTS", 3 * 5 * K)  # five rows at a time
    best = gptq_on_best_grid(weight, hessian, grids)
    e = best.values - weight
    torch.testing.assert_close((e @ damped * e).sum(-1), losses.amin(0), rtol=1e-2, atol=1e-4)
    assert best.codes.shape == best.source.shape == (N, K)
