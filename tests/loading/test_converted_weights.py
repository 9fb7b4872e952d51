"""Weights that Transformers converts on loading go to files: the model is the same, and needs less memory."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from transformers_qaig import QAIGConfig
from transformers_qaig.loading import converted_weights
from transformers_qaig.loading.converted_weights import ConvertedWeights
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
    monkeypatch.setattr(converted_weights, "LEAST", 1)
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
    monkeypatch.setattr(converted_weights, "LEAST", 64)
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
