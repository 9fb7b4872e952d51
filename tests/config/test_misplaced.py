"""A setting in the wrong place is refused with the right one; what the message writes is accepted."""

from typing import Any

import pytest

from transformers_qaig import QAIGConfig


def refusal(**settings: Any) -> str:
    with pytest.raises((TypeError, ValueError)) as error:
        QAIGConfig(**settings)
    return str(error.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"recipe": {"bits": 3}}, "`recipe` has no 'bits'. Write QAIGConfig(bits=...)."),
        ({"recipe": {"cost": "fisher"}}, "`recipe` has no 'cost'. Write budget=BitBudget(cost=...)."),
        ({"recipe": {"max_length": 9}}, "'max_length'. Write calibration=CalibrationConfig(max_length=...)"),
        ({"calibration": {"num_samples": 8}}, "`calibration` has no 'num_samples'. Write QAIGConfig(num_samples=...)."),
        ({"budget": {"steps": 8}}, "`budget` has no 'steps'. Write recipe={'name': 'default', 'steps': ...}."),
        ({"rounding": "gptq"}, "unknown argument 'rounding'. Write recipe={'name': 'default', 'rounding': ...}."),
    ],
)
def test_a_setting_in_the_wrong_place_is_told_the_right_one(given: dict[str, Any], expected: str) -> None:
    assert expected in refusal(**given)


@pytest.mark.parametrize("given", [{"recipe": {"damping": 0.1}}, {"damping": 0.1}])
def test_damping_is_refused_with_the_reason(given: dict[str, Any]) -> None:
    message = refusal(**given)
    assert "damping" in message
    assert "Leave it out: recipe='default' chooses it on held-back samples" in message


def test_a_typo_is_told_the_nearest_name_and_nonsense_all_names() -> None:
    assert refusal(recipe={"stepz": 3}).endswith("Did you mean 'steps'?")
    assert "Known are columns, max_length," in refusal(calibration={"zzzz": 3})


def test_an_override_says_what_it_takes() -> None:
    message = refusal(overrides={"*.o_proj": {"damping": 0.1}})
    assert message.startswith("overrides['*.o_proj'] has no ['damping']: it says how a weight is stored, by `bits`")
