"""Moments of a group's inputs: joined samples count by their mass, and targets and errors are what the sums say."""

import torch

from tests import seeds
from tests.tolerance import assert_close
from transformers_qaig.rounding.hessian import Hessian, moment_sum
from transformers_qaig.rounding.moments import InputMoments, moved_target, shifts_outputs


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
    shift = found.output_shift("fc", weight)
    target = moved_target(weight, shift, Hessian.of(found.second, damping=1e-7), 1.0)
    solved = torch.linalg.lstsq(x_q, x @ weight.T).solution.T
    assert_close(target, solved, 4096)
    assert torch.equal(moved_target(weight, shift, Hessian.of(found.second), 0.0), weight)


def test_a_shift_of_outputs_says_the_same() -> None:
    x, x_q = data(200)
    weights = {"q": torch.randn(5, 16, generator=seeds.generator()), "k": torch.randn(2, 16)}
    of_inputs, stacked = moments(x, x_q), torch.cat([*weights.values()])
    shift = x_q.T @ ((x - x_q) @ stacked.T) / len(x)
    of_outputs = InputMoments(of_inputs.second, shift, of_inputs.mass, {"q": slice(0, 5), "k": slice(5, 7)})
    for name, weight in weights.items():
        for every in (1, 2):
            found, wanted = (each.output_shift(name, weight, every) for each in (of_outputs, of_inputs))
            assert found is not None
            assert wanted is not None
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert of_outputs.to(torch.device("cpu")).rows == of_outputs.rows


def test_outputs_are_shifted_where_they_are_few() -> None:
    assert shifts_outputs(100, 201)
    assert not shifts_outputs(100, 200)


def test_output_error_tells_roundings_apart_as_the_outputs_do() -> None:
    x, x_q = data(200)
    generator = seeds.generator()
    weight = torch.randn(5, 16, generator=generator)
    found = moments(x, x_q)
    trials = [weight + 0.1 * torch.randn(5, 16, generator=generator) for _ in range(2)]
    errors = [float((x @ weight.T - x_q @ trial.T).square().sum(-1).mean()) for trial in trials]
    measured = [found.output_error(weight, trial, found.output_shift("fc", weight)) for trial in trials]
    assert abs((measured[0] - measured[1]) - (errors[0] - errors[1])) < 1e-4 * max(errors)
    without_shift = InputMoments(found.second, None, found.mass)
    assert without_shift.output_shift("fc", weight) is None
    assert moved_target(weight, None, Hessian.of(found.second), 1.0) is weight
    without_shift.join(without_shift)
    assert without_shift.shift is None
    error = weight - trials[0]
    assert (
        abs(without_shift.output_error(weight, trials[0], None) - float((x_q @ error.T).square().sum(-1).mean())) < 1e-3
    )
