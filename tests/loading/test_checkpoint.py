"""Damaged checkpoints are errors that name what is wrong."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageTextToText
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from transformers_qaig import QAIGConfig


def _damaged(folder: Path, target: Path, change) -> Path:
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def _find(tensors: dict[str, Tensor], ending: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(ending))


@pytest.fixture(scope="session")
def in_half(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bfloat16."""
    folder = tmp_path_factory.mktemp("half")
    settings = QAIGConfig(recipe="rtn", group_size=32)
    AutoModelForImageTextToText.from_pretrained(
        llava, quantization_config=settings, dtype=torch.bfloat16
    ).save_pretrained(folder)
    return folder


PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", ["missing", "extra", "misshapen", "wrong type"])
def test_damage_is_an_error_that_names_the_tensor(
    quantized: tuple[nn.Module, Path], tmp_path: Path, part: str, damage: str
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        name = _find(tensors, f"1.mlp.up_proj.{part}")
        if damage == "missing":
            del tensors[name]
        elif damage == "extra":
            tensors[name.replace("up_proj", "side_proj")] = tensors[name].clone()
        elif damage == "misshapen":
            tensors[name] = tensors[name][:-1].clone()
        else:
            wrong = torch.float64 if tensors[name].is_floating_point() else torch.float32
            tensors[name] = tensors[name].to(wrong)

    folder = _damaged(quantized[1], tmp_path, change)
    linear = "side_proj" if damage == "extra" else "up_proj"
    with pytest.raises(ValueError, match=rf"(?s)1\.mlp\.{linear}\.{part}.*left from an earlier push"):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_a_weight_that_is_stored_packed_and_dense_is_named(quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[_find(tensors, "1.mlp.up_proj.weight_packed").removesuffix("_packed")] = torch.ones(96, 64)

    folder = _damaged(quantized[1], tmp_path, change)
    with pytest.raises(
        ValueError, match=r"1\.mlp\.up_proj\.weight is in model\.safetensors in full precision, and its"
    ):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_dense_weights_under_the_config_of_packed_ones_are_reported(
    quantized: tuple[nn.Module, Path], llava: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((quantized[1] / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((llava / "model.safetensors").read_bytes())
    with pytest.raises(
        ValueError, match=r"(?s)layers\.\d.*model\.safetensors' holds none .* in full precision\. Delete.*earlier push"
    ):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


@pytest.mark.parametrize(("part", "value"), [("weight_scale", float("nan")), ("weight_shape", 7)])
def test_damaged_contents_are_an_error_too(
    quantized: tuple[nn.Module, Path], tmp_path: Path, part: str, value: float
) -> None:
    folder = _damaged(quantized[1], tmp_path, lambda tensors: tensors[_find(tensors, f"up_proj.{part}")].fill_(value))
    with pytest.raises(ValueError, match=rf"up_proj\.{part}"):
        AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e38])
def test_weights_that_are_not_finite_are_named(quantized: tuple[nn.Module, Path], tmp_path: Path, value: float) -> None:
    folder = _damaged(
        quantized[1], tmp_path, lambda tensors: tensors[_find(tensors, "up_proj.weight_scale")][3:4].fill_(value)
    )
    with pytest.raises(ValueError, match=r"up_proj\.weight_scale has values that are not finite"):
        AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.parametrize("ending", ["input_layernorm.weight", "embed_tokens.weight", "fc1.bias"])
def test_what_is_not_packed_is_finite_too(quantized: tuple[nn.Module, Path], tmp_path: Path, ending: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[_find(tensors, ending)].view(-1)[-1] = float("nan")

    with pytest.raises(ValueError, match=rf"{ending} has values that are not finite"):
        AutoModelForImageTextToText.from_pretrained(_damaged(quantized[1], tmp_path, change))


def test_integers_in_the_place_of_a_weight_are_named(quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        name = _find(tensors, "input_layernorm.weight")
        tensors[name] = tensors[name].view(torch.int32)

    with pytest.raises(ValueError, match=r"input_layernorm\.weight has type I32"):
        AutoModelForImageTextToText.from_pretrained(_damaged(quantized[1], tmp_path, change))


def test_scales_of_one_layer_in_another_16_bit_type_are_named(in_half: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        name = _find(tensors, "1.mlp.up_proj.weight_scale")
        tensors[name] = tensors[name].view(torch.float16)

    with pytest.raises(ValueError, match=r"1\.mlp\.up_proj\.weight_scale has type F16"):
        AutoModelForImageTextToText.from_pretrained(_damaged(in_half, tmp_path, change))


def test_one_unpacked_tensor_in_another_16_bit_type_is_named(in_half: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        name = _find(tensors, "1.input_layernorm.weight")
        tensors[name] = tensors[name].view(torch.float16)

    with pytest.raises(ValueError, match=r"1\.input_layernorm\.weight has type F16.*the other tensors have BF16"):
        AutoModelForImageTextToText.from_pretrained(_damaged(in_half, tmp_path, change))


def test_a_part_in_a_16_bit_type_of_its_own_loads(in_half: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(in_half)
    model.model.vision_tower.half()
    model.save_pretrained(tmp_path)
    AutoModelForImageTextToText.from_pretrained(tmp_path)


def test_a_negative_scale_is_named(quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    folder = _damaged(quantized[1], tmp_path, lambda tensors: tensors[_find(tensors, "up_proj.weight_scale")][3].neg_())
    with pytest.raises(ValueError, match=r"up_proj\.weight_scale has negative values"):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_a_saved_buffer_that_holds_nan_is_named(
    quantized: tuple[nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Gemma 4's `layer_scalar`."""
    made = LlamaRMSNorm.__init__

    def with_buffer(self: nn.Module, *args: object, **kwargs: object) -> None:
        made(self, *args, **kwargs)
        self.register_buffer("scalar", torch.ones(1))

    monkeypatch.setattr(LlamaRMSNorm, "__init__", with_buffer)
    for value, good in ((2.0, True), (float("-inf"), True), (float("nan"), False)):
        folder = tmp_path / str(value)
        folder.mkdir()

        def change(tensors: dict[str, Tensor], value: float = value) -> None:
            norms = [name for name in tensors if "language_model" in name and name.endswith("norm.weight")]
            tensors.update({name.replace("weight", "scalar"): torch.full((1,), value) for name in norms})

        _damaged(quantized[1], folder, change)
        if good:
            AutoModelForImageTextToText.from_pretrained(folder)
            continue
        with pytest.raises(ValueError, match=r"norm\.scalar holds NaN"):
            AutoModelForImageTextToText.from_pretrained(folder)


def test_an_index_that_is_no_file_is_not_read(quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    folder = _damaged(quantized[1], tmp_path, lambda tensors: None)
    os.mkfifo(folder / "a.safetensors.index.json")
    (folder / "b.safetensors.index.json").symlink_to("/dev/zero")
    (folder / "c.safetensors.index.json").mkdir()
    (folder / "d.safetensors.index.json").symlink_to("d.safetensors.index.json")
    AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.parametrize("entry", [{"group_size": 33}, {"group_size": 2**31 - 1}])
def test_a_misfit_in_the_plan_names_its_layer(quantized: tuple[nn.Module, Path], tmp_path: Path, entry: dict) -> None:
    folder = _damaged(quantized[1], tmp_path, lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    path = "model.language_model.layers.1.mlp.up_proj"
    config["quantization_config"]["plan"][path].update(entry)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{path}: group_size"):
        AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.parametrize("ending", ["0.input_layernorm.weight", "vision_tower.post_layernorm.weight"])
def test_a_missing_tensor_that_is_not_packed_is_an_error_too(
    quantized: tuple[nn.Module, Path], tmp_path: Path, ending: str
) -> None:
    folder = _damaged(quantized[1], tmp_path, lambda tensors: tensors.pop(_find(tensors, ending)))
    with pytest.raises(ValueError, match=f"{ending} is missing"):
        AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.parametrize("size", [0, 100, 50_000])
def test_a_truncated_file_is_named(quantized: tuple[nn.Module, Path], tmp_path: Path, size: int) -> None:
    file = _damaged(quantized[1], tmp_path, lambda tensors: None) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


def test_only_safetensors_are_read(quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    folder = _damaged(quantized[1], tmp_path, lambda tensors: None)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="safetensors"):
        AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.parametrize("damage", ["twice", "no plan", "other path", "other bits", "rotated rows"])
def test_a_plan_that_does_not_fit_is_an_error(quantized: tuple[nn.Module, Path], tmp_path: Path, damage: str) -> None:
    folder = _damaged(quantized[1], tmp_path, lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    plan = config["quantization_config"]["plan"]
    path = next(iter(plan))
    if damage == "twice":
        plan[f"model.{path}"] = dict(plan[path])
    elif damage == "no plan":
        del config["quantization_config"]["plan"]
    elif damage == "other path":
        plan["model.language_model.layers.9.mlp.up_proj"] = plan.pop(path)
    elif damage == "rotated rows":
        plan["model.language_model.embed_tokens"] = {**plan[path], "rotation": {"block": 32, "seed": 0}}
    else:
        plan[path]["bits"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"plan|damaged|match"):
        AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.parametrize("count", [10_000, pytest.param(80_000, marks=pytest.mark.slow)])
def test_time_grows_no_faster_than_a_plan(quantized: tuple[nn.Module, Path], tmp_path: Path, count: int) -> None:
    folder = _damaged(quantized[1], tmp_path, lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    plan = config["quantization_config"]["plan"]
    entry = next(iter(plan.values()))
    for cls in (AutoModelForImageTextToText, AutoModel):
        seconds = []
        for entries in (count // 8, count):
            more = {f"model.language_model.layers.{i}.x": entry for i in range(entries)}
            config["quantization_config"]["plan"] = {**plan, **more}
            (folder / "config.json").write_text(json.dumps(config))
            start = time.process_time()
            with pytest.raises(ValueError, match=rf"packs {entries + 14:,} weights, such as .*\.layers\.0\.x'"):
                cls.from_pretrained(folder)
            seconds.append(time.process_time() - start)
        assert seconds[1] < 24 * seconds[0]  # eight times where time is linear, 64 times where it is quadratic


def test_a_newer_format_says_so_when_loading(quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    folder = _damaged(quantized[1], tmp_path, lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(format_version=3, needs_version="9.9", something_new=1)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"upgrade transformers-qaig to >= 9\.9"):
        AutoModelForImageTextToText.from_pretrained(folder)
