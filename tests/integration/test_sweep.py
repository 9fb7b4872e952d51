"""The sweep over all image-text-to-text classes of Transformers, sampled; `python -m tests.sweep` goes over all."""

import pytest

from tests.sweep import Row, row_of, table

SAMPLED = ("aya_vision", "cohere2_vision", "fuyu", "git", "glm46v", "gemma4_unified", "vision-encoder-decoder")
"""Families that the tiny models of other tests do not have."""


@pytest.mark.slow
@pytest.mark.parametrize("family", SAMPLED)
def test_a_family_is_quantized_saved_loaded_and_writes(family: str) -> None:
    row = row_of(family)
    assert row.is_sound, row
    assert int(row.coverage.rstrip("%")) >= 90


def test_a_family_that_cannot_be_built_is_a_row_too() -> None:
    row = row_of("no such family")
    assert row.built.startswith("KeyError")
    assert not row.is_sound
    assert "| no such family | not built: KeyError" in table([row])


def test_the_table_tells_what_works() -> None:
    sound = Row("a", "99%", "", "", "", "", "")
    assert table([sound]).splitlines()[-1] == "| a | 99% | yes | yes | yes | yes | yes |"
    assert sound.is_sound
