"""Models with experts on their way through Transformers: quantized, saved, loaded, generating, dense again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM as Auto
from transformers import AutoModelForImageTextToText

from tests.experts import CONFIGS, build, stack_of
from tests.families import conversations, save
from tests.lifecycle import logits
from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.nn.experts import QAIGExperts

IDS = torch.tensor([[5, 9, 17, 33, 65, 100], [7, 8, 9, 10, 11, 12]])
RTN = {"bits": 4, "group_size": 32, "recipe": "rtn"}


def out(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def stacks(model: nn.Module) -> list[QAIGExperts]:
    return [module for module in model.modules() if isinstance(module, QAIGExperts)]


@pytest.fixture(scope="module", params=CONFIGS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    build(request.param, torch.bfloat16).save_pretrained(folder)
    return folder


def test_a_family_is_quantized_saved_loaded_and_made_dense_again(family: Path, tmp_path: Path) -> None:
    full = Auto.from_pretrained(family)
    model = Auto.from_pretrained(family, quantization_config=QAIGConfig(**RTN))
    assert stacks(model)
    assert model.qaig_report.coverage.packed_fraction > 0.97
    assert (out(model) - out(full)).norm() < 0.3 * out(full).norm()
    model.save_pretrained(tmp_path / "q")
    assert "experts_implementation" not in (tmp_path / "q" / "config.json").read_text()

    again = Auto.from_pretrained(tmp_path / "q")
    assert torch.equal(out(again), out(model))
    tensors = model.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in again.state_dict().items())
    assert again.generate(IDS, max_new_tokens=3, do_sample=False).shape == (2, 9)
    again.save_pretrained(tmp_path / "q2")
    assert torch.equal(out(Auto.from_pretrained(tmp_path / "q2")), out(model))

    again.dequantize()
    assert not stacks(again)
    assert again.state_dict().keys() == full.state_dict().keys()
    again.save_pretrained(tmp_path / "dense")
    dense = Auto.from_pretrained(tmp_path / "dense").state_dict()
    assert all(torch.equal(tensor, dense[name]) for name, tensor in again.state_dict().items())


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixtral")
    build("mixtral", torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def packed(mixtral: Path) -> nn.Module:
    return Auto.from_pretrained(mixtral, quantization_config=QAIGConfig(**RTN))


def test_a_stack_is_flat_in_the_file_and_short_in_the_plan(packed: nn.Module, tmp_path: Path) -> None:
    packed.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        experts = [key for key in stored.keys() if ".experts." in key]
        words = stored.get_slice(next(key for key in experts if key.endswith("down_proj_packed")))
        assert len(words.get_shape()) == 1
    assert len(experts) == 2 * 3 * 3
    plan = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["plan"]
    assert {path for path in plan if "layers.0" in path and "experts" in path} == {
        f"model.layers.0.mlp.experts.*.{name}_proj" for name in ("gate", "up", "down")
    }


def test_shards_are_as_good_as_one_file(packed: nn.Module, tmp_path: Path) -> None:
    packed.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert torch.equal(out(Auto.from_pretrained(tmp_path)), out(packed))


def test_a_stack_may_lie_on_disk(packed: nn.Module, tmp_path: Path) -> None:
    packed.save_pretrained(tmp_path / "q")
    parts = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    where = {**dict.fromkeys(parts, "cpu"), "model.layers.1": "disk"}
    model = Auto.from_pretrained(tmp_path / "q", device_map=where, offload_folder=tmp_path / "offload")
    assert model.model.layers[1].mlp.experts.is_offloaded
    assert torch.equal(out(model), out(packed))


def test_experts_of_mixed_width_come_back(mixtral: Path, tmp_path: Path) -> None:
    path, _ = stack_of(build("mixtral"))
    config = QAIGConfig(**RTN, overrides={f"{path}.1": 2, f"{path}.2.down_proj": 8})
    model = Auto.from_pretrained(mixtral, quantization_config=config)
    assert model.get_submodule(path).schemes["down_proj"].bits == (4, 2, 8, 4)
    model.save_pretrained(tmp_path)
    assert torch.equal(out(Auto.from_pretrained(tmp_path)), out(model))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("model.layers.0.mlp.experts.9.up_proj", "neither a linear layer nor an expert"),
        ("model.layers.0.mlp.experts.x.up_proj", "neither a linear layer nor an expert"),
        ("model.layers.0.mlp.experts.1.other", "neither a linear layer nor an expert"),
        ("model.layers.0.mlp.experts.1.up_proj", "twice"),
    ],
)
def test_a_plan_that_names_no_expert_is_an_error(packed: nn.Module, tmp_path: Path, path: str, message: str) -> None:
    packed.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["plan"][path] = {"bits": 4, "group_size": 32, "sym": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        Auto.from_pretrained(tmp_path)


def test_an_expert_of_another_width_than_stored_is_an_error(packed: nn.Module, tmp_path: Path) -> None:
    packed.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["plan"]["model.layers.0.mlp.experts.*.up_proj"]["bits"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"up_proj_packed has shape"):
        Auto.from_pretrained(tmp_path)


def test_experts_that_no_file_holds_are_an_error(mixtral: Path, tmp_path: Path) -> None:
    model = Auto.from_pretrained(mixtral)
    path, _ = stack_of(model)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(path)}
    model.save_pretrained(tmp_path, state_dict=tensors)
    with pytest.raises(ValueError, match=r"experts\.down_proj and 1 more would be packed, but no file"):
        Auto.from_pretrained(tmp_path, quantization_config=QAIGConfig(**RTN))


# -- calibrated

VLM = {"bits": 3, "group_size": 32, "dataset": conversations(24)}


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3_vl_moe")
    save("qwen3_vl_moe", folder, torch.float32)
    return folder


@pytest.fixture(scope="module")
def calibrated(vlm: Path) -> nn.Module:
    return AutoModelForImageTextToText.from_pretrained(vlm, quantization_config=QAIGConfig(**VLM))


def test_calibrated_experts_are_better_than_rounded_ones(vlm: Path, calibrated: nn.Module) -> None:
    config = QAIGConfig(**VLM, modules_to_not_convert=["self_attn"], recipe="gptq")
    first = AutoModelForImageTextToText.from_pretrained(vlm, quantization_config=config)
    errors = [block.error for block in first.qaig_report.targets]
    config = QAIGConfig(**VLM, modules_to_not_convert=["self_attn"], recipe={"name": "fast", "equalization": "none"})
    assert all(0 < error < 1 for error in errors)
    clipped = AutoModelForImageTextToText.from_pretrained(vlm, quantization_config=config)
    assert errors[0] < clipped.qaig_report.targets[0].error * 1.2
    assert not calibrated.qaig_report.targets[0].to_nearest


def test_the_report_counts_experts_with_too_few_tokens(vlm: Path) -> None:
    few = {**VLM, "dataset": conversations(3)}
    model = AutoModelForImageTextToText.from_pretrained(vlm, quantization_config=QAIGConfig(**few, recipe="gptq"))
    averaged = [block.averaged for block in model.qaig_report.targets]
    assert any(count for block in averaged for count in block.values())
    assert "saw too few tokens" in str(model.qaig_report)


def test_an_interrupted_run_finds_its_experts_again(vlm: Path, calibrated: nn.Module, tmp_path: Path) -> None:
    config = QAIGConfig(**VLM, calibration={"work_dir": tmp_path})
    first = AutoModelForImageTextToText.from_pretrained(vlm, quantization_config=config)
    again = AutoModelForImageTextToText.from_pretrained(vlm, quantization_config=config)
    assert [block.resumed for block in again.qaig_report.targets] == [True, True]
    assert torch.equal(logits(again, vlm), logits(first, vlm))
    assert torch.equal(logits(first, vlm), logits(calibrated, vlm))


def test_a_budget_chooses_a_width_for_every_expert(vlm: Path) -> None:
    budget = BitBudget(bits=4.0, candidates=(2, 3, 4, 8))
    config = QAIGConfig(group_size=32, dataset=conversations(8), recipe="rtn", budget=budget)
    model = AutoModelForImageTextToText.from_pretrained(vlm, quantization_config=config)
    assert model.qaig_report.bits_per_weight <= 4.0
    widths = {bits for stack in stacks(model) for scheme in stack.schemes.values() for bits in scheme.bits}
    assert len(widths) > 1


@pytest.mark.slow
def test_every_kind_of_stack_gets_its_widths_by_what_they_cost(family: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = torch.randint(3, 128, (8, 1, 24), generator=torch.Generator().manual_seed(0))
    dataset = [{"input_ids": row, "labels": row.clone(), "attention_mask": torch.ones_like(row)} for row in ids]
    recipe = {"name": "rtn", "attributed_widths": True}
    model = Auto.from_pretrained(
        family, quantization_config=QAIGConfig(group_size=32, recipe=recipe, dataset=dataset, num_samples=8)
    )
    assert "cannot be measured" not in caplog.text
    assert model.qaig_report.width_costs.cost == "fisher_rtn"
