"""Budgets as users write them."""

from typing import Any

import pytest

from transformers_qaig import BitBudget, QAIGConfig


@pytest.mark.parametrize(
    ("given", "limit"), [("4x", 25_000), ("3.5x", 28_571), (" 4 X ", 25_000), ("20KB", 20_000), (30_000, 30_000)]
)
def test_a_ratio_is_to_bfloat16_and_a_size_is_itself(given: str | int, limit: int) -> None:
    budget = BitBudget(size=given)
    assert budget.file_bytes(100_000) == limit
    assert budget.counts_file
    assert BitBudget.of(budget.to_dict()) == budget


def test_a_ratio_is_kept_in_the_file_as_it_was_written() -> None:
    config = QAIGConfig(budget="4x")
    assert config.to_dict()["budget"]["size"] == "4x"
    assert QAIGConfig.from_dict(config.to_dict()) == config
    assert str(config.budget) == "4x"


@pytest.mark.parametrize("given", ["0x", "x4", "x", "4xx", "-4x", "4x4", "65x", "4 times x"])
def test_what_is_no_ratio_says_how_one_is_written(given: str) -> None:
    with pytest.raises(ValueError, match=r"`budget`: a ratio .* such as '4x' for a quarter; got"):
        BitBudget(size=given)


def test_a_number_as_text_may_have_meant_bits_or_a_ratio() -> None:
    with pytest.raises(ValueError, match=r"Write budget=4 for bits per weight, .* or '4x' for"):
        BitBudget.of("4")


def test_a_budget_in_bits_limits_no_file() -> None:
    assert not BitBudget(3.5).counts_file
    with pytest.raises(ValueError, match="does not limit the file"):
        BitBudget(3.5).file_bytes(100_000)


def test_sixteen_bits_are_no_width_to_choose() -> None:
    with pytest.raises(ValueError, match="modules_to_not_convert"):
        BitBudget(size="4x", candidates=(4, 16))


def test_a_uniform_width_says_a_budget() -> None:
    budget = BitBudget(uniform=4, candidates=(3, 4, 8))
    assert not budget.counts_file
    assert str(budget) == "as much as 4 bits for all"
    assert BitBudget.of(budget.to_dict()) == budget


@pytest.mark.parametrize("given", [{"uniform": 5}, {"uniform": 4, "candidates": (2, 3)}, {"uniform": "4"}])
def test_a_uniform_width_is_one_to_choose_from(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`uniform` must be one of `candidates`"):
        BitBudget(**given)


@pytest.mark.parametrize("given", [{}, {"bits": 4, "uniform": 4}, {"size": "4x", "uniform": 4}, {"bits": 4, "size": 9}])
def test_a_budget_is_said_in_one_way(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="exactly one of them"):
        BitBudget(**given)
