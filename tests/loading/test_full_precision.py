"""Weights before they are quantized.

Those that Transformers converts on loading go to files: the model is the same, and needs less memory. Those that are in
no file, or not finite, are refused.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, Qwen3MoeConfig

from tests.lifecycle import FAST
from transformers_qaig import QAIGConfig
from transformers_qaig.calibration import pipeline
from transformers_qaig.loading import full_precision
from transformers_qaig.loading.full_precision import ConvertedWeights, check_finite_weights
from transformers_qaig.utils import scratch
from transformers_qaig.utils.scratch import ScratchFiles


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint with one tensor for each expert: loading casts and joins them."""
    folder = tmp_path_factory.mktemp("experts")
    config = Qwen3MoeConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        vocab_size=128,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def quantized(folder: Path, **calibration: object) -> dict[str, torch.Tensor]:
    config = QAIGConfig(bits=3, recipe="rtn", group_size=32, calibration=calibration)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=config)
    model.save_pretrained(folder / "saved")
    return model.state_dict()


@pytest.mark.parametrize("has_work_dir", [False, True])
def test_the_model_is_the_same_with_all_tensors_in_files(
    experts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_work_dir: bool
) -> None:
    wanted, kept = quantized(experts), []
    keep = ScratchFiles.store

    def noted(self: ScratchFiles, tensor: torch.Tensor) -> torch.Tensor:
        kept.append(keep(self, tensor))
        assert kept[-1] is not tensor
        return kept[-1]

    monkeypatch.setattr(scratch, "LEAST", 1)
    monkeypatch.setattr(scratch, "RESERVE", 0)
    monkeypatch.setattr(full_precision, "LEAST", 1)
    monkeypatch.setattr(ScratchFiles, "store", noted)
    got = quantized(experts, work_dir=tmp_path if has_work_dir else None)
    assert len(kept) > 2 * 8
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".json", ".safetensors", "")]


def test_a_disk_without_room_leaves_the_tensor_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.ones(scratch.LEAST)
    assert ScratchFiles(tmp_path / "absent").store(tensor) is tensor
    monkeypatch.setattr(scratch, "RESERVE", 1 << 60)
    assert ScratchFiles(tmp_path).store(tensor) is tensor


def test_a_kept_tensor_has_its_values_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "RESERVE", 0)
    tensor = torch.randn(3, scratch.LEAST).bfloat16().T
    kept = ScratchFiles(tmp_path).store(tensor)
    assert kept.data_ptr() != tensor.data_ptr()
    assert torch.equal(kept, tensor)
    assert kept.dtype == tensor.dtype
    assert not list(tmp_path.iterdir())


def test_a_second_large_weight_of_another_shape_is_an_error_where_the_first_is_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Transformers asks about the first weight that a stored tensor becomes, and so never runs the step for these."""
    monkeypatch.setattr(full_precision, "LEAST", 64)
    small, large = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(8, 8, bias=False)
    model = torch.nn.ModuleDict({"small": small, "large": large})
    step = ConvertedWeights(model, [], torch.float32, ScratchFiles(None))
    assert "small.weight" not in step
    step.check_shapes(model)
    large.weight.data = torch.ones(8, 9)
    assert "large.weight" in step  # so Transformers does not look at its shape
    with pytest.raises(ValueError, match=r"large.weight has the shape \[8, 9\] in the checkpoint and \[8, 8\]"):
        step.check_shapes(model)
    step.convert({"large.weight": large.weight}, ["stored"], [])
    assert "large.weight" not in step
    step.check_shapes(model)


RTN = QAIGConfig(bits=4, group_size=32, recipe="rtn")


@pytest.fixture
def copied(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a model, whose calibration must not begin."""
    monkeypatch.setattr(pipeline, "calibrate", lambda *_: pytest.fail("calibrated"))
    return shutil.copytree(llava, tmp_path / "copied")


def test_a_weight_in_no_file_is_an_error_that_names_it(copied: Path) -> None:
    file = copied / "model.safetensors"
    tensors = load_file(file)
    lost = [name for name in tensors if name.endswith(("layers.1.mlp.down_proj.weight", "layers.1.mlp.up_proj.weight"))]
    assert len(lost) == 2
    save_file({name: tensor for name, tensor in tensors.items() if name not in lost}, file, {"format": "pt"})
    named = r"model\.language_model\.layers\.1\.mlp\.down_proj and 1 more would be packed, but no file"
    with pytest.raises(ValueError, match=named):
        AutoModelForImageTextToText.from_pretrained(copied, quantization_config=RTN)


def test_a_weight_of_another_shape_is_an_error_even_if_transformers_ignores_it(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["intermediate_size"] += 32
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.down_proj and 5 more would be packed"):
        AutoModelForImageTextToText.from_pretrained(copied, quantization_config=RTN, ignore_mismatched_sizes=True)


def test_a_missing_weight_that_stays_as_it_is_is_left_to_transformers(llava: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(llava, tmp_path / "copied")
    tensors = load_file(copied / "model.safetensors")
    save_file({k: t for k, t in tensors.items() if "lm_head" not in k}, copied / "model.safetensors", {"format": "pt"})
    AutoModelForImageTextToText.from_pretrained(copied, quantization_config=RTN)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.weight"])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_weight_a_bias_and_a_norm_are_named(name: str, bad: float) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    check_finite_weights(model)
    model.get_parameter(name).data.view(-1)[-1] = bad
    with pytest.raises(ValueError, match=name):
        check_finite_weights(model)


def test_of_buffers_only_what_is_saved_and_no_number_is_refused() -> None:
    model = nn.BatchNorm1d(4)
    model.register_buffer("mask", torch.tensor([0.0, -INF]))
    model.register_buffer("unsaved", torch.tensor([NAN]), persistent=False)
    check_finite_weights(model)
    model.running_mean[2] = NAN
    with pytest.raises(ValueError, match="running_mean"):
        check_finite_weights(model)


@pytest.mark.parametrize("settings", [{"bits": 4, "recipe": "rtn"}, {"bits": 4}, {"budget": 4.5}])
def test_the_source_is_refused_before_calibration(llava, tmp_path, settings: dict) -> None:
    model = AutoModelForImageTextToText.from_pretrained(llava)
    name = "model.language_model.layers.1.post_attention_layernorm.weight"
    model.get_parameter(name).data[3] = NAN
    model.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(llava).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"weights hold NaN or Inf: {name}"):
        AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=QAIGConfig(**settings, **FAST))
