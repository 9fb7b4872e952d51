"""What counts as finite, and the weights that are refused."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from tests.lifecycle import FAST
from transformers_qaig import QAIGConfig
from transformers_qaig.utils.finite import are_finite, check_weights, is_finite, is_lower

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


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.weight"])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_weight_a_bias_and_a_norm_are_named(name: str, bad: float) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    check_weights(model)
    model.get_parameter(name).data.view(-1)[-1] = bad
    with pytest.raises(ValueError, match=name):
        check_weights(model)


def test_of_buffers_only_what_is_saved_and_no_number_is_refused() -> None:
    model = nn.BatchNorm1d(4)
    model.register_buffer("mask", torch.tensor([0.0, -INF]))
    model.register_buffer("unsaved", torch.tensor([NAN]), persistent=False)
    check_weights(model)
    model.running_mean[2] = NAN
    with pytest.raises(ValueError, match="running_mean"):
        check_weights(model)


@pytest.mark.parametrize("settings", [{"bits": 4, "recipe": "rtn"}, {"bits": 4}, {"budget": 4.5}])
def test_the_source_is_refused_before_calibration(llava, tmp_path, settings: dict) -> None:
    model = AutoModelForImageTextToText.from_pretrained(llava)
    name = "model.language_model.layers.1.post_attention_layernorm.weight"
    model.get_parameter(name).data[3] = NAN
    model.save_pretrained(tmp_path)
    from transformers import AutoProcessor

    AutoProcessor.from_pretrained(llava).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"weights hold NaN or Inf: {name}"):
        AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=QAIGConfig(**settings, **FAST))
