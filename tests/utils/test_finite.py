"""What counts as finite."""

import pytest
import torch

from transformers_qaig.utils.finite import are_finite, is_finite, is_lower

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_bad_element_makes_a_tensor_bad(dtype: torch.dtype, bad: float) -> None:
    x = torch.randn(33, 7).to(dtype)
    assert is_finite(x)
    x[20, 3] = bad
    assert not is_finite(x)


def test_integers_nothing_and_float8_are_told_too() -> None:
    assert is_finite(torch.arange(3))
    assert is_finite(torch.empty(0, 4))
    assert is_finite(torch.ones(4).to(torch.float8_e4m3fn))
    assert not is_finite(torch.tensor([1.0, NAN]).to(torch.float8_e4m3fn))


def test_many_tensors_are_told_apart_at_once() -> None:
    bad = torch.tensor([1.0, INF])
    found = are_finite(
        [torch.ones(2), bad, torch.arange(3), torch.empty(0), bad.half(), torch.tensor(1e300, dtype=torch.float64)]
    )
    assert found == [True, False, True, True, False, True]
    assert are_finite([]) == []


def test_an_error_that_is_not_finite_is_never_the_lower_one() -> None:
    new = torch.tensor([1.0, 2.0, NAN, 1.0, INF, NAN, 1.0])
    old = torch.tensor([2.0, 1.0, 1.0, NAN, NAN, NAN, INF])
    assert is_lower(new, old).tolist() == [True, False, False, True, False, False, True]
