import torch
from torch import Tensor

from tests.tolerance import SPREAD, assert_close, unit
from transformers_qaig.rounding import hessian as moments
from transformers_qaig.rounding.hessian import DAMPING, Hessian, inverse_factor, moment_sum, second_moment

K = 96


def _moment(tokens: int = 300) -> Tensor:
    x = torch.randn(1, tokens, 24) @ torch.randn(24, K) + 0.3 * torch.randn(1, tokens, K)
    return second_moment([(x, torch.ones(1, tokens))])


def _damped(moment: Tensor) -> Tensor:
    """In float64."""
    return moment.double() + DAMPING * moment.diagonal().double().mean() * torch.eye(K)


def _solving(matrix: Tensor) -> float:
    """Largest relative error of float32 solutions: the matrix' condition times what √K roundings add up to."""
    return SPREAD * K**0.5 * unit(torch.float32) * float(torch.linalg.cond(matrix))


def test_moments_are_weighted_and_split_over_batches() -> None:
    x, weight = torch.randn(2, 6, K), torch.rand(2, 6)
    rows = x.reshape(-1, K)
    wanted = (rows * weight.reshape(-1, 1)).T @ rows / weight.sum()
    assert_close(second_moment([(x, weight)]), wanted, 2 * len(rows))
    assert_close(second_moment([(x[:1], weight[:1]), (x[1:], weight[1:])]), wanted, 2 * len(rows))


def test_cross_moments_are_weighted_and_leave_out_what_is_not_finite() -> None:
    x, y, weight = torch.randn(1, 6, K), torch.randn(1, 6, K), torch.rand(1, 6)
    y[0, 2, 5], x[0, 4, 1] = float("nan"), float("inf")
    good = [0, 1, 3, 5]
    moment, mass = moment_sum([(x, y, weight)])
    assert_close(moment, (x[0, good] * weight[0, good, None]).T @ y[0, good], len(good))
    assert_close(mass, weight[0, good].sum(), len(good))


def test_the_factor_is_of_the_damped_inverse() -> None:
    moment = _moment()
    factor = inverse_factor(moment, DAMPING)
    assert factor is not None
    assert torch.equal(factor, factor.triu())
    damped = _damped(moment)
    inverse = factor.double().T @ factor.double()
    assert (inverse @ damped - torch.eye(K)).abs().max() < _solving(damped)


def test_a_factor_in_an_order_is_that_of_the_moments_in_that_order() -> None:
    moment, order = _moment(), torch.randperm(K)
    expected = inverse_factor(moment[order][:, order], DAMPING)
    found = inverse_factor(moment, DAMPING, order)
    assert (found - expected).norm() < _solving(_damped(moment)) * expected.norm()


def test_moments_are_made_in_stripes(monkeypatch) -> None:
    x, weight = torch.randn(1, 50, K), torch.rand(1, 50)
    whole = moment_sum([(x, x, weight)])[0]
    monkeypatch.setattr(moments, "STRIPE", 40)
    assert_close(moment_sum([(x, x, weight)])[0], whole, 50)


def test_solving_undoes_the_order_of_columns() -> None:
    moment, right = _moment(), torch.randn(K, 5)
    wanted = torch.linalg.solve(_damped(moment), right.double())
    error = Hessian.of(moment).solve(right) - wanted
    assert (error.norm(dim=0) < _solving(_damped(moment)) * wanted.norm(dim=0)).all()
    moment[3, 3] = float("nan")
    assert (Hessian.of(moment).solve(right) == 0).all()


def test_an_indefinite_hessian_is_damped_until_it_works_or_given_up() -> None:
    hessian = _moment()
    shift = hessian.diagonal().mean() * torch.eye(K)
    damped = inverse_factor(hessian - 0.05 * shift, DAMPING)
    assert damped is not None
    assert torch.isfinite(damped).all()
    assert inverse_factor(-hessian, DAMPING) is None
    assert inverse_factor(torch.eye(K) + 1e3 * (1 - torch.eye(K)), DAMPING) is None
