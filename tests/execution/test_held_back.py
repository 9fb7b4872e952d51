"""The error of a trial on samples that are held back."""

import math

import pytest
import torch
from torch import nn

from transformers_qaig.config.recipes import recipe_of
from transformers_qaig.execution.exclusions import NotFinite
from transformers_qaig.execution.held_back import VALIDATION_EVERY, HeldBack, full_outputs, held_back_every
from transformers_qaig.execution.layer_inputs import LayerInputs, TargetInputs


def scale(factor: float) -> nn.Linear:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = factor * torch.eye(2)
    return layer


def inputs_of(full: list[list[float]], quantized: list[list[float]], real: int = 2) -> TargetInputs:
    """Samples of two tokens, of which `real` are no padding."""
    calls = [
        {i: LayerInputs((torch.tensor([sample]),), {}) for i, sample in enumerate(samples)}
        for samples in (full, quantized)
    ]
    return TargetInputs(*calls, [(torch.arange(2) < real)[None] for _ in full])


FULL = [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 0.0]]]


def test_the_error_is_that_of_all_samples_together_on_what_the_quantized_model_reads() -> None:
    quantized = [[[1.0, 1.0], [0.0, 1.0]], FULL[1]]
    held_back = HeldBack(scale(1), inputs_of(FULL, quantized), [0, 1])
    assert held_back.error(scale(1), "a trial") == pytest.approx(1 / 6)
    assert held_back.error(scale(2), "a trial") == pytest.approx((1 + 4 + 1 + 4) / 6)
    assert HeldBack(scale(1), inputs_of(FULL, quantized), [1]).error(scale(1), "a trial") == 0


def test_without_samples_or_tokens_there_is_no_error() -> None:
    assert HeldBack(scale(1), inputs_of(FULL, FULL), []).error(scale(3), "a trial") == 0
    assert HeldBack(scale(1), inputs_of(FULL, FULL, real=0), [0]).error(scale(3), "a trial") == 0


def test_an_output_that_is_not_finite_names_its_sample_and_the_trial() -> None:
    quantized = [FULL[0], [[math.nan, 0.0], [0.0, 0.0]]]
    held_back = HeldBack(scale(1), inputs_of(FULL, quantized), [0, 1])
    with pytest.raises(NotFinite, match="sample 1: NaN or Inf in a trial"):
        held_back.error(scale(1), "a trial")


def test_a_full_output_that_is_not_finite_is_named_before_any_trial_unless_padding_alone_is() -> None:
    broken = [[[1.0, 0.0], [math.inf, 0.0]]]
    with pytest.raises(NotFinite, match="sample 0: NaN or Inf in the full-precision output"):
        full_outputs(scale(1), inputs_of(broken, broken), [0])
    assert full_outputs(scale(1), inputs_of(broken, broken, real=1), [0])[0].shape == (1, 2, 2)


def test_a_recipe_that_validates_holds_some_samples_back() -> None:
    assert held_back_every(recipe_of("default")) == VALIDATION_EVERY
    assert held_back_every(recipe_of("rtn")) == 1
