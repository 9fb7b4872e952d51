"""NaN or Inf in one sample, or in all: the sample is named and left out, or the run stops and says what to do."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from tests.families import samples
from transformers_qaig import QAIGConfig
from transformers_qaig.token_weights import data as weighting

NAN = float("nan")
BAD = 3
LAYER = "model.language_model.layers.0"
RECIPES: dict[str, dict[str, Any]] = {
    "default": {"bits": 3},
    "fast": {"bits": 3, "recipe": "fast"},
    "paper": {"bits": 3, "recipe": "paper"},
    "mbq": {"bits": 3, "recipe": "mbq"},
    "authors": {"bits": 3, "recipe": "authors"},
    "budget": {"budget": {"bits": 4, "candidates": (2, 4)}},
}
SLOW = ("paper", "mbq", "authors", "budget")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, logger="transformers.qaig")
    return lambda: [r.getMessage() for r in caplog.records if "sample" in r.getMessage()]


def data(folder: Path, count: int = 7) -> list[dict[str, Tensor]]:
    found = samples(AutoProcessor.from_pretrained(folder), count, seed=5)
    return [{**sample, "labels": sample["input_ids"].clone()} for sample in found]


def quantize(folder: Path, dataset: list[dict[str, Tensor]], **settings: Any) -> PreTrainedModel:
    config = QAIGConfig(**{"group_size": 32, "dataset": dataset, **settings})
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config)


def same(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("recipe", ["default", "fast", *(pytest.param(r, marks=pytest.mark.slow) for r in SLOW)])
def test_a_sample_with_a_bad_pixel_might_as_well_not_be_there(llava: Path, said: Any, recipe: str) -> None:
    good = data(llava)
    bad = [dict(sample) for sample in good]
    bad[BAD]["pixel_values"] = bad[BAD]["pixel_values"].clone()
    bad[BAD]["pixel_values"][0, 0, 0, 0] = NAN
    model = quantize(llava, bad, **RECIPES[recipe])
    assert said() == [f"Calibration sample {BAD} is left out: NaN or Inf in its input 'pixel_values'."]
    report = model.qaig_report
    tokens = sum(int(sample["attention_mask"].sum()) for i, sample in enumerate(good) if i != BAD)
    assert (report.num_samples, report.num_tokens) == (len(good) - 1, tokens)
    assert list(report.left_out) == [BAD]
    assert "nan" not in str(report)
    assert same(model, quantize(llava, [sample for i, sample in enumerate(good) if i != BAD], **RECIPES[recipe]))


@pytest.fixture(scope="module")
def narrow(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float16 model whose first block overflows where the text holds token 5."""
    folder = tmp_path_factory.mktemp("narrow")
    model = AutoModelForImageTextToText.from_pretrained(llava, dtype=torch.float16)
    model.get_input_embeddings().weight.data[5] = 65000
    model.get_submodule(LAYER).mlp.down_proj.weight.data *= 3000
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(llava).save_pretrained(folder)
    return folder


def with_token_5(sample: dict[str, Tensor]) -> dict[str, Tensor]:
    ids = sample["input_ids"].clone()
    ids[0, -2] = 5
    return {**sample, "input_ids": ids, "labels": ids.clone()}


@pytest.mark.parametrize(
    ("recipe", "bad"),  # sample 4 validates
    [("default", 3), ("default", 4), ("budget", 3), *(pytest.param(r, 4, marks=pytest.mark.slow) for r in SLOW)],
)
def test_a_sample_that_overflows_in_a_block_is_left_out_there(
    narrow: Path, said: Any, tmp_path: Path, recipe: str, bad: int
) -> None:
    dataset = [with_token_5(s) if i == bad else s for i, s in enumerate(data(narrow))]
    model = quantize(narrow, dataset, **RECIPES[recipe], calibration={"work_dir": tmp_path / "work"})
    (line,) = said()
    assert line.startswith(f"Calibration sample {bad} is left out: NaN or Inf in the ")
    assert "model.language_model.layers." in line
    report = model.qaig_report
    assert report.num_samples == len(dataset) - 1
    assert all(math.isfinite(block.error) for block in report.targets)
    assert all(torch.isfinite(m.dequantize()).all() for m in model.modules() if hasattr(m, "weight_packed"))
    resumed = quantize(narrow, dataset, **RECIPES[recipe], calibration={"work_dir": tmp_path / "work"})
    assert resumed.qaig_report.left_out == report.left_out
    assert same(resumed, model)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_model_that_overflows_stops_with_the_dtype_to_load_it_in(narrow: Path, recipe: str) -> None:
    dataset = [with_token_5(sample) for sample in data(narrow)]
    with pytest.raises(ValueError, match=r"overflows in float16: load the model with dtype=torch\.bfloat16"):
        quantize(narrow, dataset, **RECIPES[recipe])


def test_a_gradient_that_is_not_finite_leaves_its_sample_out(
    llava: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [], weighting.token_gradients

    def gradients(model: Any, blocks: Any, sample: Any, answer: Any) -> list[Tensor]:
        calls.append(sample)
        found = real(model, blocks, sample, answer)
        return [g * NAN for g in found] if len(calls) == BAD + 1 else found

    monkeypatch.setattr(weighting, "token_gradients", gradients)
    model = quantize(llava, data(llava), **RECIPES["mbq"])
    assert said() == [f"Calibration sample {BAD} is left out: NaN or Inf in the gradient of its answers' loss."]
    assert model.qaig_report.num_samples == 6


def test_without_data_no_error_is_shown(llava: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = quantize(llava, data(llava), bits=4, recipe="rtn")
    assert "error" not in str(model.qaig_report)
    shown = capfd.readouterr().err
    assert "Quantizing (rtn)" in shown
    assert "error=" not in shown


def test_without_data_a_model_that_overflows_stops_too(llava: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(llava, dtype=torch.float16)
    for name in ("gate_proj", "up_proj", "down_proj"):
        model.get_submodule(f"{LAYER}.mlp.{name}").weight.data *= 1000
    model.save_pretrained(tmp_path)
    config = QAIGConfig(recipe="rtn", group_size=32)
    wanted = rf"in the output of {LAYER} .* overflows in float16: load the model with dtype=torch\.bfloat16"
    with pytest.raises(ValueError, match=wanted):
        AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=config)
    AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=config, dtype=torch.bfloat16)


@pytest.mark.parametrize("path", [f"{LAYER}.mlp.down_proj", "model.language_model.embed_tokens"])
def test_a_weight_that_overflows_once_it_is_rounded_is_named(llava: Path, tmp_path: Path, path: str) -> None:
    model = AutoModelForImageTextToText.from_pretrained(llava, dtype=torch.float16)
    model.get_submodule(f"{LAYER}.mlp.up_proj").weight.data.zero_()  # no forward pass shows it
    weight = model.get_submodule(path).weight.data
    weight[37, :32] = torch.tensor([65504.0, 0.0] * 16)
    model.save_pretrained(tmp_path)
    config = QAIGConfig(recipe="rtn", group_size=32, embedding_bits=4)
    name = path if "mlp" in path else "The weight of the embeddings"
    with pytest.raises(ValueError, match=rf"{name} overflows float16: rounded to 4 bits its largest value is 65,520"):
        AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=config)
