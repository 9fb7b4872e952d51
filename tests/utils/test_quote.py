"""Values in messages stay short, whatever a user or a file gave."""

import pytest

from transformers_qaig.utils.quote import quote


@pytest.mark.parametrize("value", [3, "W4", [1, 2], {"bits": 4}, None])
def test_a_short_value_is_shown_as_it_is(value: object) -> None:
    assert quote(value) == repr(value)


@pytest.mark.parametrize("value", ["x" * 10**6, list(range(10**5)), {i: i for i in range(10**5)}, 10**4000])
def test_a_long_value_is_shown_in_part(value: object) -> None:
    assert len(quote(value)) <= 250


def test_a_deep_value_is_shown_from_outside() -> None:
    deep: list[object] = []
    for _ in range(500):
        deep = [deep]
    assert quote(deep) == "[[[[[...]]]]]"


def test_an_integer_that_python_does_not_write_is_named() -> None:
    assert quote(10**5000) == "a int that is too long to show"
