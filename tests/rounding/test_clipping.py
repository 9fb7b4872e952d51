import torch

from tests.tolerance import assert_close
from transformers_qaig.rounding.clipping import GAINS, search_clipping, second_moments
from transformers_qaig.rounding.quant_grid import minmax_grid

ARGUMENTS = {"bits": 3, "group_size": 32, "sym": False, "storage_dtype": torch.float32}


def test_moments_are_weighted_per_group_and_ignore_weightless_tokens() -> None:
    x, weight = torch.randn(1, 6, 64), torch.tensor([[1.0, 2, 0, 1, 0, 4]])
    x[0, 2] = 1e3
    moments = second_moments([(x, weight)], 32)
    rows = x[0, :, 32:]
    assert_close(moments[1], (rows * weight[0, :, None]).T @ rows / weight.sum(), 2 * x.shape[1])
    assert moments.shape == (2, 32, 32)


def _case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weight, x = torch.randn(24, 64), torch.randn(1, 400, 64)
    weight[:, ::16] *= 3  # outliers that are worth clipping
    return weight, x, second_moments([(x, torch.ones(1, 400))], 32)


def test_clipping_lowers_the_output_error() -> None:
    weight, x, _ = _case()
    moments = second_moments([(x, torch.ones(1, 400))], 32)
    arguments = {**ARGUMENTS, "bits": 2}  # where it gains 20 to 30 % with any data
    found = search_clipping(weight, moments, **arguments)
    assert found.shrink.shape == found.gain.shape == (24, 2)
    assert (found.shrink < 1).any()

    def error(**clipping: torch.Tensor) -> torch.Tensor:
        e = (minmax_grid(weight, **clipping, **arguments).quantize(weight) - weight).view(24, 2, 32)
        return torch.einsum("ngk,gkl,ngl->ng", e, moments, e)

    assert error(shrink=found.shrink, gain=found.gain).sum() < 0.9 * error().sum()


def test_clipped_outputs_are_not_smaller_than_they_were() -> None:
    weight, x, moments = _case()
    found = search_clipping(weight, moments, **ARGUMENTS)
    value = minmax_grid(weight, shrink=found.shrink, gain=found.gain, **ARGUMENTS).quantize(weight)
    for group in (slice(0, 32), slice(32, 64)):
        y, y_q = x[0, :, group] @ weight[:, group].T, x[0, :, group] @ value[:, group].T
        gain = found.gain[:, group.start // 32]
        inside = (gain > GAINS[0]) & (gain < GAINS[1])
        assert inside.float().mean() > 0.9
        torch.testing.assert_close((y * y_q).sum(0)[inside], (y * y).sum(0)[inside], rtol=1e-3, atol=1e-3)


def test_groups_without_signal_are_left_alone() -> None:
    weight, _, moments = _case()
    moments[1] = 0
    weight[3, :32] = 0
    found = search_clipping(weight, moments, **ARGUMENTS)
    assert (found.shrink[:, 1] == 1).all()
    assert (found.gain[:, 1] == 1).all()
    assert found.gain[3, 0] == 1
    assert torch.isfinite(found.gain).all()
