import torch

from transformers_qaig.rounding.clipping import search_shrink, second_moments
from transformers_qaig.rounding.grid import minmax_grid

ARGUMENTS = {"bits": 3, "group_size": 32, "sym": False, "storage_dtype": torch.float32}


def test_moments_are_weighted_per_group_and_ignore_weightless_tokens() -> None:
    x, weight = torch.randn(1, 6, 64), torch.tensor([[1.0, 2, 0, 1, 0, 4]])
    x[0, 2] = 1e3
    moments = second_moments([x], [weight], 32)
    rows = x[0, :, 32:]
    torch.testing.assert_close(moments[1], (rows * weight[0, :, None]).T @ rows / weight.sum())
    assert moments.shape == (2, 32, 32)


def test_shrink_lowers_the_output_error_of_every_row_and_group() -> None:
    weight, x = torch.randn(24, 64), torch.randn(1, 200, 64)
    weight[:, ::16] *= 5  # outliers that are worth clipping
    moments = second_moments([x], [torch.ones(1, 200)], 32)
    shrink = search_shrink(weight, moments, **ARGUMENTS)
    assert shrink.shape == (24, 2)

    def error(factor: torch.Tensor | float) -> torch.Tensor:
        e = (minmax_grid(weight, shrink=factor, **ARGUMENTS).quantize(weight) - weight).view(24, 2, 32)
        return torch.einsum("ngk,gkl,ngl->ng", e, moments, e)

    assert (error(shrink) <= error(1.0) * 1.0001).all()
    assert error(shrink).sum() < 0.9 * error(1.0).sum()
