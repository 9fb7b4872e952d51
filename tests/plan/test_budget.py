"""Schemes to choose from under a budget, and the bits that a budget leaves."""

import pytest
from torch import nn

from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.plan.allocate import reachable
from transformers_qaig.plan.build import budget_in_bits, list_schemes, make_plan


def test_options_under_a_budget_and_overrides_that_leave_one(llava: nn.Module) -> None:
    config = QAIGConfig(
        group_size=32, budget=BitBudget(4, candidates=(2, 3, 8)), overrides={"*.down_proj": 4, "o_proj": {"sym": True}}
    )
    options, coverage = list_schemes(llava, config)
    for path, choices in options.items():
        widths = [option.scheme.bits for option in choices]
        assert widths == ([4] if path.endswith("down_proj") else [2, 3, 8])
        assert all(option.scheme.sym is path.endswith("o_proj") for option in choices)
        assert [option.size for option in choices] == sorted(option.size for option in choices)
    assert coverage.stored_bits == 0
    with pytest.raises(ValueError, match="several `bits`"):
        make_plan(llava, config)


def test_a_budget_below_the_smallest_choice_names_the_range(llava: nn.Module) -> None:
    config = QAIGConfig(budget=BitBudget(2.5, candidates=(2, 3)), group_size=32)
    options, coverage = list_schemes(llava, config)
    with pytest.raises(
        ValueError, match=r"3\.062 to 4\.094 stored bits"
    ):  # fp32 scales: 1.06 bits at 2 bits, 1.09 at 3
        budget_in_bits(config, options, coverage, reachable(options))
    assert budget_in_bits(QAIGConfig(budget=3.5), options, coverage, reachable(options)) == 3.5 * coverage.packed


def test_a_size_counts_the_whole_model(llava: nn.Module) -> None:
    options, coverage = list_schemes(llava, QAIGConfig(budget=4, group_size=32))
    whole = sum(8 * t.element_size() * t.numel() for t in llava.state_dict().values())
    assert coverage.other_bits == whole - 32 * coverage.packed + 2 * 64 * len(options)
    budget = budget_in_bits(QAIGConfig(budget="400KB"), options, coverage, reachable(options))
    assert budget == 8 * 400_000 - coverage.other_bits
    with pytest.raises(ValueError, match="bytes are fixed"):
        budget_in_bits(QAIGConfig(budget="20KB"), options, coverage, reachable(options))


def test_a_uniform_width_leaves_what_that_width_takes(llava: nn.Module) -> None:
    given = {"group_size": 32, "overrides": {"*.down_proj": 8}}
    config = QAIGConfig(budget=BitBudget(uniform=4, candidates=(3, 4, 8)), **given)
    options, coverage = list_schemes(llava, config)
    uniform = make_plan(llava, QAIGConfig(bits=4, **given))[1].stored_bits
    assert budget_in_bits(config, options, coverage, reachable(options)) == uniform
