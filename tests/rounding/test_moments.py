"""Moments of a group's inputs: joined samples count by their mass, and targets and errors are what the sums say."""

import torch

from tests import seeds
from tests.tolerance import assert_close
from transformers_qaig.rounding.hessian import Hessian, moment_sum
from transformers_qaig.rounding.moments import InputMoments


def moments(x: torch.Tensor, x_q: torch.Tensor) -> InputMoments:
    weight = torch.ones(1, len(x))
    (second, mass), (shift, _) = (moment_sum([(x_q[None], other[None], weight)]) for other in (x_q, x - x_q))
    return InputMoments.of_sums(second, shift, mass)


def data(tokens: int, channels: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeds.generator()
    x = torch.randn(tokens, channels, generator=generator)
    return x, x + 0.1 * torch.randn(tokens, channels, generator=generator)


def test_joining_is_as_if_all_samples_were_measured_together() -> None:
    x, x_q = data(90)
    joined = moments(x[:70], x_q[:70])
    joined.join(moments(x[70:], x_q[70:]))
    whole = moments(x, x_q)
    assert float(joined.mass) == 90
    assert_close(joined.second, whole.second, 90)
    assert joined.shift is not None
    assert whole.shift is not None
    assert_close(joined.shift, whole.shift, 90)


def test_joining_nothing_changes_nothing() -> None:
    x, x_q = data(40)
    joined, before = moments(x, x_q), moments(x, x_q)
    joined.join(InputMoments(torch.full((16, 16), 7.0), torch.full((16, 16), 7.0), torch.zeros(())))
    assert torch.equal(joined.second, before.second)
    assert joined.shift is not None
    assert before.shift is not None
    assert torch.equal(joined.shift, before.shift)


def test_target_is_the_regression_of_the_outputs_on_the_quantized_inputs() -> None:
    x, x_q = data(200)
    weight = torch.randn(5, 16, generator=seeds.generator())
    found = moments(x, x_q)
    target = found.target(weight, Hessian.of(found.second, damping=1e-7), 1.0)
    solved = torch.linalg.lstsq(x_q, x @ weight.T).solution.T
    assert_close(target, solved, 4096)
    assert torch.equal(found.target(weight, Hessian.of(found.second), 0.0), weight)


def test_output_error_tells_roundings_apart_as_the_outputs_do() -> None:
    x, x_q = data(200)
    generator = seeds.generator()
    weight = torch.randn(5, 16, generator=generator)
    found = moments(x, x_q)
    trials = [weight + 0.1 * torch.randn(5, 16, generator=generator) for _ in range(2)]
    errors = [float((x @ weight.T - x_q @ trial.T).square().sum(-1).mean()) for trial in trials]
    measured = [found.output_error(weight, trial) for trial in trials]
    assert abs((measured[0] - measured[1]) - (errors[0] - errors[1])) < 1e-4 * max(errors)
    without_shift = InputMoments(found.second, None, found.mass)
    assert without_shift.target(weight, Hessian.of(found.second), 1.0) is weight
    without_shift.join(without_shift)
    assert without_shift.shift is None
    error = weight - trials[0]
    assert abs(without_shift.output_error(weight, trials[0]) - float((x_q @ error.T).square().sum(-1).mean())) < 1e-3
