"""The sweep over all families of Transformers, sampled; `python -m tests.sweep` goes over all."""

import re
from pathlib import Path

import pytest
import transformers

from tests.sweep import ledger
from tests.sweep.models import TEXT_ONLY, WITH_PICTURES
from tests.sweep.rows import Row, row_of
from tests.sweep.sizes import LAYERS, VOCABULARY, shrunk

SAMPLED = ("aya_vision", "cohere2_vision", "fuyu", "git", "instructblip", "qwen3_omni_moe_thinker", "longcat_flash")
"""Families that the tiny models of other tests do not have."""
PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "families.md"


@pytest.mark.slow
@pytest.mark.parametrize("family", SAMPLED)
def test_a_family_is_quantized_saved_loaded_and_writes(family: str) -> None:
    row = row_of(family)
    assert row.works, row


@pytest.mark.slow
def test_families_that_are_new_in_transformers_become_rows() -> None:
    rows = [row_of(family) for family in (*WITH_PICTURES, *TEXT_ONLY) if family not in ledger.read()]
    assert all(row.works or row.built or row.refused for row in rows), rows


def test_the_table_has_every_family_of_its_transformers() -> None:
    rows = ledger.read()
    versions = {row["transformers"] for row in rows.values()}
    assert len(versions) == 1, "run `python -m tests.sweep --again`"
    if versions == {transformers.__version__}:
        assert set(rows) == {*WITH_PICTURES, *TEXT_ONLY}
    assert set(re.findall(r"^\| (\S+) \| (?:[\d.]+%|–) \|", PAGE.read_text(), re.MULTILINE)) == set(rows)


def test_a_family_that_cannot_be_built_is_a_row_too() -> None:
    row = row_of("no such family")
    assert row.built.startswith("KeyError")
    assert not row.works


def test_a_row_works_if_every_step_does() -> None:
    steps = dict.fromkeys(("built", "rtn", "default", "round_trip", "generate"), "")
    assert Row("a", coverage=0.9, **steps).works
    assert not Row("a", coverage=0.89, **steps).works
    assert not Row("a", coverage=1.0, **{**steps, "default": "rounded to nearest: mlp.up_proj"}).works


def test_a_configuration_keeps_layers_of_different_kinds() -> None:
    small = shrunk(
        {
            "num_hidden_layers": 6,
            "hidden_size": 4096,
            "layer_types": ["a", "a", "b", "a", "a", "b"],
            "rates": [1, 1, 2, 1, 1, 2],
            "sources": [0, 1, 2, 3, 4, 5],
            "image_token_id": 100_000,
        }
    )
    assert small["layer_types"] == ["a", "b"]
    assert small["rates"] == [1, 2]
    assert small["sources"] == [0, 1]
    assert (small["num_hidden_layers"], small["hidden_size"]) == (LAYERS, 64)
    assert small["image_token_id"] < VOCABULARY
