import torch
from torch import Tensor

from transformers_qaig.rounding import moments
from transformers_qaig.rounding.moments import DAMPING, Curvature, inverse_factor, moment_sum, second_moment

K = 96


def _moment(tokens: int = 300) -> Tensor:
    x = torch.randn(1, tokens, 24) @ torch.randn(24, K) + 0.3 * torch.randn(1, tokens, K)
    return second_moment([(x, torch.ones(1, tokens))])


def test_moments_are_weighted_and_split_over_batches() -> None:
    x, weight = torch.randn(2, 6, K), torch.rand(2, 6)
    rows = x.reshape(-1, K)
    wanted = (rows * weight.reshape(-1, 1)).T @ rows / weight.sum()
    torch.testing.assert_close(second_moment([(x, weight)]), wanted)
    torch.testing.assert_close(second_moment([(x[:1], weight[:1]), (x[1:], weight[1:])]), wanted)


def test_cross_moments_are_weighted_and_leave_out_what_is_not_finite() -> None:
    x, y, weight = torch.randn(1, 6, K), torch.randn(1, 6, K), torch.rand(1, 6)
    y[0, 2, 5], x[0, 4, 1] = float("nan"), float("inf")
    good = [0, 1, 3, 5]
    moment, mass = moment_sum([(x, y, weight)])
    torch.testing.assert_close(moment, (x[0, good] * weight[0, good, None]).T @ y[0, good])
    torch.testing.assert_close(mass, weight[0, good].sum())


def test_the_factor_is_of_the_damped_inverse() -> None:
    moment = _moment()
    factor = inverse_factor(moment, DAMPING)
    assert factor is not None
    assert torch.equal(factor, factor.triu())
    damped = moment.double() + DAMPING * moment.diagonal().mean().double() * torch.eye(K)
    torch.testing.assert_close((factor.T @ factor).double() @ damped, torch.eye(K).double(), rtol=0, atol=1e-3)


def test_a_factor_in_an_order_is_that_of_the_moments_in_that_order() -> None:
    moment, order = _moment(), torch.randperm(K)
    expected = inverse_factor(moment[order][:, order], DAMPING)
    assert torch.equal(inverse_factor(moment, DAMPING, order), expected)


def test_moments_are_made_in_stripes(monkeypatch) -> None:
    x, weight = torch.randn(1, 50, K), torch.rand(1, 50)
    whole = moment_sum([(x, x, weight)])[0]
    monkeypatch.setattr(moments, "STRIPE", 40)
    torch.testing.assert_close(moment_sum([(x, x, weight)])[0], whole)


def test_solving_undoes_the_order_of_columns() -> None:
    moment, right = _moment(), torch.randn(K, 5)
    damped = moment + DAMPING * moment.diagonal().mean() * torch.eye(K)
    wanted = torch.linalg.solve(damped, right)
    torch.testing.assert_close(Curvature.of(moment).solve(right), wanted, rtol=1e-3, atol=1e-4)
    moment[3, 3] = float("nan")
    assert (Curvature.of(moment).solve(right) == 0).all()


def test_an_indefinite_hessian_is_damped_until_it_works_or_given_up() -> None:
    hessian = _moment()
    shift = hessian.diagonal().mean() * torch.eye(K)
    damped = inverse_factor(hessian - 0.05 * shift, DAMPING)
    assert damped is not None
    assert torch.isfinite(damped).all()
    assert inverse_factor(-hessian, DAMPING) is None
    assert inverse_factor(torch.eye(K) + 1e3 * (1 - torch.eye(K)), DAMPING) is None
