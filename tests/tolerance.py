"""How far two correct results may lie apart, from what they were computed in and how many terms were added.

Each rounding errs by up to u = eps / 2 of what it rounds. A sum of n terms is rounded n times in whatever order a
library takes them: at most n u Σ|terms|, and since roundings go either way about √n u Σ|terms|. Two libraries, or one
library on two processors, agree that far and no further: never compare their sums to the bit.
"""

import math

import torch
from torch import Tensor, nn

SPREAD = 6
"""How much more than √n roundings is allowed: chance gives that much once in 10⁸ times."""


def unit(dtype: torch.dtype) -> float:
    """u, the largest relative error of one rounding to `dtype`."""
    return torch.finfo(dtype).eps / 2


def rounding(dtype: torch.dtype, terms: int, summed_in: torch.dtype | None = None) -> float:
    """How far two sums of `terms` products may lie apart, as a share of Σ|terms|.

    `terms` counts along the longest way from input to result: those of one product after another add up. Sums of
    16-bit numbers are kept in `summed_in`, float32 unless told, and rounded to `dtype` at the end.
    """
    summed_in = summed_in or torch.promote_types(dtype, torch.float32)
    ends = 0.0 if summed_in == dtype else 2 * unit(dtype)
    return 2 * SPREAD * math.sqrt(max(terms, 1)) * unit(summed_in) + ends


def terms_of(module: nn.Module) -> int:
    """At most how many terms are added one after another from a model's inputs to its outputs: every sum it makes.

    Attention adds as many as there are tokens, norms as many as there are channels: that doubles what linears add.
    """
    linears = sum(m.in_features for m in module.modules() if isinstance(getattr(m, "in_features", None), int))
    convolutions = (m for m in module.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d))
    return 2 * (linears + sum(m.weight[0].numel() for m in convolutions))


def assert_close(
    actual: Tensor,
    expected: Tensor,
    terms: int,
    *,
    magnitude: Tensor | float | None = None,
    summed_in: torch.dtype | None = None,
) -> None:
    """Two sums of `terms` products, made in any order, of the same dtype.

    `magnitude` is Σ|terms|: of each element, or of all; a sum that cancels has no relative accuracy, its terms have.
    Without it the largest element stands for it, which is less wherever terms of both signs are added.
    """
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    finite = expected.isfinite()
    assert torch.equal(finite, actual.isfinite())
    torch.testing.assert_close(actual[~finite], expected[~finite], rtol=0, atol=0, equal_nan=True)
    if magnitude is None:
        magnitude = float(expected[finite].abs().max()) if finite.any() else 0.0
    allowed = (rounding(expected.dtype, terms, summed_in) * torch.as_tensor(magnitude)).double().expand_as(expected)
    difference = (actual.double() - expected.double()).abs()[finite]
    worst = float((difference / allowed[finite].clamp(min=1e-300)).max()) if finite.any() else 0.0
    assert worst <= 1, f"{float(difference.max())} apart, {worst:.3g} times what {terms} roundings allow"


def assert_product(
    actual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, weight_in: torch.dtype | None = None
) -> None:
    """`actual` is x Wᵀ + b, summed in any order: compared with float64, each element by the size of its terms.

    With `weight_in` the weight may have been rounded to that dtype first: one rounding a term, of either sign.
    """
    terms_of = (x.double(), weight.double(), None if bias is None else bias.double())
    exact = torch.nn.functional.linear(*terms_of)
    size = torch.nn.functional.linear(*(t if t is None else t.abs() for t in terms_of))
    terms = x.shape[-1] + 1
    if weight_in is not None:
        squares = torch.nn.functional.linear(x.double().square(), weight.double().square()).sqrt()
        size = size + SPREAD * unit(weight_in) * squares / rounding(actual.dtype, terms)
    assert_close(actual, exact.to(actual.dtype), terms, magnitude=size)
