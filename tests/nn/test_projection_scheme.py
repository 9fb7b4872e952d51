"""The schemes of a projection's experts: joined into one, and taken apart again."""

from dataclasses import replace

import pytest

from transformers_qaig.formats.hadamard import Rotation
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.nn.projection_scheme import ProjectionScheme

SCHEMES = [WeightScheme(bits, 64, True, activation_bits=8) for bits in (3, 8, 2)]


def test_each_expert_gets_its_scheme_back() -> None:
    joined = ProjectionScheme.of(SCHEMES, "up")
    assert [joined.scheme(expert) for expert in range(3)] == SCHEMES


def test_equal_bits_are_said_once() -> None:
    assert ProjectionScheme.of(SCHEMES, "up").short_bits == [3, 8, 2]
    assert ProjectionScheme.of(SCHEMES[:1] * 5, "up").short_bits == [3]


@pytest.mark.parametrize("change", [{"group_size": 32}, {"sym": False}, {"activation_bits": 16}])
def test_experts_that_differ_in_more_than_bits_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^up: the experts of a stack may differ in `bits` only"):
        ProjectionScheme.of([*SCHEMES, replace(SCHEMES[0], **change)], "up")


def test_a_rotation_is_refused() -> None:
    rotated = replace(SCHEMES[0], rotation=Rotation(32, 1))
    with pytest.raises(ValueError, match=r"^up: the input of experts cannot be rotated"):
        ProjectionScheme.of([*SCHEMES, rotated], "up")
