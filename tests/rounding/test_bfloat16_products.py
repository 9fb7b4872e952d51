"""Exact products of bfloat16: which devices have them, and what is lost where float32 is split."""

import pytest
import torch

from tests import seeds
from transformers_qaig.rounding import bfloat16_products
from transformers_qaig.rounding.bfloat16_products import halves, multiplies_exactly, product


def test_the_cpu_rounds_its_products_and_is_not_asked() -> None:
    assert not multiplies_exactly(torch.device("cpu"))


def test_a_device_whose_results_are_rounded_does_not_multiply_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = multiplies_exactly.__wrapped__
    meta = torch.device("meta")
    for rounded, exact in ((False, True), (True, False)):

        def multiply(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype, rounded: bool = rounded) -> torch.Tensor:
            found = torch.full((len(a), b.shape[1]), float(a.shape[1]), device="cpu")
            return found.bfloat16().to(out_dtype) if rounded else found

        monkeypatch.setattr(bfloat16_products.torch, "mm", multiply)
        assert ask(meta) is exact


@pytest.mark.parametrize("error", [NotImplementedError("no kernel"), RuntimeError("no"), TypeError("no such argument")])
def test_a_device_without_such_products_does_not_multiply_exactly(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(bfloat16_products.torch, "mm", fail)
    assert not multiplies_exactly.__wrapped__(torch.device("meta"))


def test_two_halves_hold_sixteen_bits() -> None:
    x = torch.randn(1000, generator=seeds.generator())
    high, low = halves(x)
    assert high.dtype == low.dtype == torch.bfloat16
    lost = (x.double() - high.double() - low.double()).abs()
    assert bool((lost <= 2.0**-16 * x.abs()).all())
    assert bool((lost > 2.0**-20 * x.abs()).any())  # they are not more than they say


def test_float32_is_multiplied_as_it_is() -> None:
    generator = seeds.generator()
    a, b = (torch.randn(5, 5, generator=generator) for _ in range(2))
    assert torch.equal(product(a, b), a @ b)
