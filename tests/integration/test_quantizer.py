"""A model quantized inside from_pretrained: how it is asked for, what is refused, where it is put."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText, pipeline

from tests.families import FAMILIES, save
from tests.lifecycle import FAST, inputs, logits, packed, run
from transformers_qaig import AutoModelForVision2Seq, QAIGConfig
from transformers_qaig.config.recipes import RECIPES
from transformers_qaig.nn.experts_layout import ExpertsLayout, find_experts, split_path
from transformers_qaig.nn.linear import get_linear
from transformers_qaig.plan.experts import expand_path, owner
from transformers_qaig.quantizer import QAIGHfQuantizer
from transformers_qaig.structure import find_decoder_blocks


def disturb(model: nn.Module, plan: Iterable[str]) -> None:
    """Random errors as large as 8 bits' in the planned weights: recurrences with random weights make much of them."""
    with torch.no_grad():
        stacks = find_experts(model)
        for path in (full for short in plan for full in expand_path(short, stacks)):
            weight = _weight(model, path, stacks)
            step = (weight.amax(1, keepdim=True) - weight.amin(1, keepdim=True)) / 255
            weight += step * (torch.rand_like(weight) - 0.5)


def _weight(model: nn.Module, path: str, stacks: dict[str, ExpertsLayout]) -> torch.Tensor:
    parts = split_path(path)
    if parts is None or parts[0] not in stacks:
        return get_linear(model, path).weight
    return stacks[parts[0]].weight(model.get_submodule(parts[0]), int(parts[1]), parts[2])


def unlike(a: torch.Tensor, b: torch.Tensor) -> float:
    """1 - their correlation."""
    return 1 - float(torch.corrcoef(torch.stack([a.flatten().float(), b.flatten().float()]))[0, 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_quantizes_saves_and_reloads_bit_by_bit(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / "fp")
    config = QAIGConfig(bits=8, **FAST)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "fp", quantization_config=config)
    plan = model.config.quantization_config.plan
    assert packed(model) == list(dict.fromkeys(owner(path, find_experts(model)) for path in plan))
    assert len(plan) >= 2 * len(find_decoder_blocks(model))
    ours = logits(model, tmp_path / "fp")
    full = AutoModelForImageTextToText.from_pretrained(tmp_path / "fp")
    reference = logits(full, tmp_path / "fp")
    assert torch.isfinite(ours).all()
    disturb(full, plan)
    assert unlike(ours, reference) < 0.01 + 4 * unlike(logits(full, tmp_path / "fp"), reference)

    model.save_pretrained(tmp_path / "q")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "q")
    assert torch.equal(logits(again, tmp_path / "fp"), ours)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs_and_reports(llava: Path, recipe: str) -> None:
    config = QAIGConfig(bits=3, recipe={"name": recipe, "steps": 10}, **FAST)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    report = model.qaig_report
    assert report.recipe == f"{recipe} with steps=10"
    assert [block.path for block in report.targets] == list(find_decoder_blocks(model))
    assert report.num_samples == (4 if RECIPES[recipe].calibrates else 0)
    assert recipe in str(report)
    if RECIPES[recipe].calibrates:
        assert all(0 < block.error < 1 for block in report.targets)
        assert report.bytes_per_sample > 0


def test_hardly_any_data_does_no_harm(llava: Path) -> None:
    one = {"input_ids": torch.tensor([[7]]), "attention_mask": torch.tensor([[1]])}
    reference = logits(AutoModelForImageTextToText.from_pretrained(llava), llava)
    errors = {}
    for recipe in ("rtn", "fast"):
        config = QAIGConfig(bits=8, group_size=32, recipe=recipe, dataset=[one])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # text-only data is warned about
            model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
        errors[recipe] = (logits(model, llava) - reference).norm()
    assert errors["fast"] < 3 * errors["rtn"]


def test_a_bare_config_works(llava: Path) -> None:
    model = AutoModelForVision2Seq.from_pretrained(llava, quantization_config=QAIGConfig(num_samples=2))
    assert model.qaig_report.coverage.packed_fraction == 1


def test_config_as_dict_and_through_pipeline(llava: Path) -> None:
    settings = {"quant_method": "qaig", "bits": 3, "recipe": "rtn", "group_size": 32}
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=settings)
    pipe = pipeline("image-text-to-text", model=str(llava), model_kwargs={"quantization_config": settings})
    assert packed(model) == packed(pipe.model)
    assert torch.equal(logits(model, llava), logits(pipe.model, llava))


@pytest.mark.parametrize("first", ["transformers", "transformers_qaig"])
def test_the_name_that_v5_dropped_is_back(first: str) -> None:
    code = (
        f"import {first}, transformers_qaig, transformers\n"
        "from transformers import AutoModelForVision2Seq as Restored\n"
        "assert Restored is transformers_qaig.AutoModelForVision2Seq is transformers.AutoModelForVision2Seq\n"
        "assert issubclass(Restored, transformers.AutoModelForImageTextToText)\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_a_class_that_transformers_has_keeps_its_name() -> None:
    code = (
        "import transformers\n"
        "theirs = transformers.AutoModelForVision2Seq = object()\n"
        "import transformers_qaig\n"
        "assert transformers.AutoModelForVision2Seq is theirs\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_same_result_twice_and_under_no_grad(llava: Path, quantized: tuple[nn.Module, Path]) -> None:
    with torch.no_grad():
        model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=QAIGConfig(bits=3, **FAST))
        assert not torch.is_grad_enabled()
    assert torch.equal(logits(model, llava), logits(quantized[0], llava))


def test_inference_mode_is_refused(llava: Path) -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        AutoModelForImageTextToText.from_pretrained(llava, quantization_config=QAIGConfig())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scales_and_outputs_have_the_models_dtype(llava: Path, dtype: torch.dtype) -> None:
    config = QAIGConfig(bits=3, **FAST)
    model = AutoModelForImageTextToText.from_pretrained(llava, dtype=dtype, quantization_config=config)
    linear = model.get_submodule(packed(model)[0])
    assert linear.weight_scale.dtype == dtype
    assert logits(model, llava).dtype == dtype


def test_8_bit_activations_are_kept(llava: Path, tmp_path: Path) -> None:
    models = {}
    for bits in (16, 8):
        config = QAIGConfig(bits=4, activation_bits=bits, **FAST)
        models[bits] = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    models[8].save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert {again.get_submodule(path).activation_bits for path in packed(again)} == {8}
    assert torch.equal(logits(again, llava), logits(models[8], llava))
    full = logits(AutoModelForImageTextToText.from_pretrained(llava), llava)
    eight, sixteen = (float((logits(models[bits], llava) - full).norm()) for bits in (8, 16))
    assert eight != sixteen
    assert eight < 1.5 * sixteen  # next to weights of 4 bits they are not felt much


def test_processor_outputs_need_no_processor(llava: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((llava / name).read_bytes())
    batch = {name: torch.cat([value] * 2) for name, value in inputs(llava).items()}
    batch["attention_mask"][0, 0] = 0
    text = {"input_ids": torch.tensor([[7, 8, 9, 7]])}
    config = QAIGConfig(bits=8, group_size=32, dataset=[batch, text, {"input_ids": [5]}])
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=config)
    full = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert logits(model, llava).allclose(logits(full, llava), rtol=0, atol=0.3)


# -- refused before any weight is read


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"modules_to_not_convert": ["*.mpl.*"]}, "matches no module"),
        ({"overrides": {"*.nothing": 4}}, "nothing"),
        ({"calibration": {"processor": "/nowhere"}}, "processor"),
        ({"calibration": {"processor": Path("/nowhere")}}, "processor"),
        ({"dataset": []}, "sample"),
        ({"dataset": [{"input_ids": [7]}], "recipe": "mbq"}, "recipe=.mbq.*needs answers"),
        ({"dataset": [{"input_ids": [7]}], "bits": None, "budget": 6, "group_size": 32}, "A budget needs answers"),
        ({"plan": {"a": {"bits": 4, "group_size": 32, "sym": False}}}, "plan"),
    ],
)
def test_bad_requests_cost_no_loading(llava: Path, tmp_path: Path, settings: dict, named: str) -> None:
    for file in llava.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(llava / "model.safetensors")
    # Truncated weights: had any been read, the error would be another one.
    save_file(
        {k: v.reshape(-1)[:1].clone() for k, v in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=named):
        AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=QAIGConfig(**{"bits": 3, **settings}))


def test_flash_attention_is_refused_for_calibration(llava: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(llava)
    model.config.text_config._attn_implementation_internal = "flash_attention_2"
    quantizer = QAIGHfQuantizer(QAIGConfig(**FAST), pre_quantized=False)
    with pytest.raises(ValueError, match="sdpa"):
        quantizer.preprocess_model(model)


# -- placement


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_device_map_on_one_device(llava: Path, quantized: tuple[nn.Module, Path], device_map: object) -> None:
    config = QAIGConfig(bits=3, **FAST)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config, device_map=device_map)
    assert torch.equal(logits(model, llava), logits(quantized[0], llava))


OFFLOADED = {
    "model.language_model.layers.1": "disk",
    **dict.fromkeys(
        ["model.language_model.layers.0", "model.vision_tower", "model.multi_modal_projector", "lm_head",
         "model.language_model.embed_tokens", "model.language_model.norm", "model.language_model.rotary_emb"],
        "cpu",
    ),
}  # fmt: skip


def test_blocks_can_be_offloaded_to_disk(llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, folder = quantized
    config = QAIGConfig(bits=3, **FAST)
    offloaded = AutoModelForImageTextToText.from_pretrained(
        llava, quantization_config=config, device_map=OFFLOADED, offload_folder=tmp_path / "offload"
    )
    linear = offloaded.get_submodule("model.language_model.layers.1.mlp.up_proj")
    assert linear.weight_packed.device.type == "meta"
    assert torch.equal(logits(offloaded, llava), logits(model, llava))
    offloaded.save_pretrained(tmp_path / "again")
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(reloaded, llava), logits(model, llava))

    loaded = AutoModelForImageTextToText.from_pretrained(
        folder, device_map=OFFLOADED, offload_folder=tmp_path / "offload2"
    )
    assert torch.equal(logits(loaded, llava), logits(model, llava))


def test_disk_without_a_folder_is_refused_before_anything_is_done(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers_qaig.calibration.pipeline.calibrate", lambda *_: pytest.fail("calibrated"))
    config = QAIGConfig(bits=3, **FAST)
    with pytest.raises(ValueError, match="offload_folder"):
        AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config, device_map=OFFLOADED)


def test_offloaded_it_is_not_dequantized(llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    """Its weights are elsewhere: what stands in their place has no values."""
    model, folder = quantized
    loaded = AutoModelForImageTextToText.from_pretrained(folder, device_map=OFFLOADED, offload_folder=tmp_path)
    with pytest.raises(ValueError, match=r"layers\.1\..*offloaded"):
        loaded.dequantize()
    assert packed(loaded) == packed(model)
    assert torch.equal(logits(loaded, llava), logits(model, llava))
