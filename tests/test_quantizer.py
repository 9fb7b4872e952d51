"""The way of a model through Transformers: quantize, save, reload, refuse."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

from tests.families import FAMILIES, conversations, samples, save
from transformers_qaig import AutoModelForVision2Seq, QAIGConfig, QAIGLinear
from transformers_qaig.plan import find_blocks
from transformers_qaig.quantizer import QAIGHfQuantizer
from transformers_qaig.recipes import RECIPES

FAST = {"group_size": 32, "dataset": conversations(4)}


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    save("llava", folder, dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def quantized(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A model quantized by default means, and where it was saved, processor included."""
    folder = tmp_path_factory.mktemp("quantized")
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=QAIGConfig(bits=3, **FAST))
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(llava).save_pretrained(folder)
    return model, folder


def _inputs(folder: Path) -> dict[str, Tensor]:
    return samples(AutoProcessor.from_pretrained(folder), 1)[0]


def _logits(model: nn.Module, folder: Path) -> Tensor:
    with torch.no_grad():
        return model(
            **{k: v.to(model.dtype) if v.is_floating_point() else v for k, v in _inputs(folder).items()}
        ).logits


def _packed(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, QAIGLinear)]


# -- quantizing


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_quantizes_saves_and_reloads_bit_by_bit(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / "fp")
    config = QAIGConfig(bits=8, min_coverage=0.1, **FAST)  # fused experts and linear attention are not covered yet
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "fp", quantization_config=config)
    plan = model.config.quantization_config.plan
    assert _packed(model) == list(plan)
    assert len(plan) >= 2 * len(find_blocks(model))
    logits = _logits(model, tmp_path / "fp")
    reference = _logits(AutoModelForImageTextToText.from_pretrained(tmp_path / "fp"), tmp_path / "fp")
    assert torch.isfinite(logits).all()
    assert torch.corrcoef(torch.stack([logits.flatten().float(), reference.flatten().float()]))[0, 1] > 0.99

    model.save_pretrained(tmp_path / "q")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "q")
    assert torch.equal(_logits(again, tmp_path / "fp"), logits)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs_and_reports(llava: Path, recipe: str) -> None:
    config = QAIGConfig(bits=3, recipe=recipe, **FAST)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    report = model.qaig_report
    assert report.recipe == recipe
    assert [block.path for block in report.blocks] == list(find_blocks(model))
    assert report.num_samples == (4 if RECIPES[recipe].calibrates else 0)
    assert recipe in str(report)
    if RECIPES[recipe].calibrates:
        assert all(0 < block.error < 1 for block in report.blocks)
        assert report.bytes_per_sample > 0


def test_hardly_any_data_does_no_harm(llava: Path) -> None:
    one = {"input_ids": torch.tensor([[7]]), "attention_mask": torch.tensor([[1]])}
    reference = _logits(AutoModelForImageTextToText.from_pretrained(llava), llava)
    errors = {}
    for recipe in ("rtn", "fast"):
        config = QAIGConfig(bits=8, group_size=32, recipe=recipe, dataset=[one])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # text-only data is warned about
            model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
        errors[recipe] = (_logits(model, llava) - reference).norm()
    assert errors["fast"] < 3 * errors["rtn"]


def test_a_bare_config_works(llava: Path) -> None:
    model = AutoModelForVision2Seq.from_pretrained(llava, quantization_config=QAIGConfig(num_samples=2))
    assert model.qaig_report.coverage.share == 1


def test_config_as_dict_and_through_pipeline(llava: Path) -> None:
    settings = {"quant_method": "qaig", "bits": 3, "recipe": "rtn", "group_size": 32}
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=settings)
    pipe = pipeline("image-text-to-text", model=str(llava), model_kwargs={"quantization_config": settings})
    assert _packed(model) == _packed(pipe.model)
    assert torch.equal(_logits(model, llava), _logits(pipe.model, llava))


@pytest.mark.parametrize("first", ["transformers", "transformers_qaig"])
def test_the_name_that_v5_dropped_is_back(first: str) -> None:
    code = (
        f"import {first}, transformers_qaig, transformers\n"
        "from transformers import AutoModelForVision2Seq as Restored\n"
        "assert Restored is transformers_qaig.AutoModelForVision2Seq is transformers.AutoModelForVision2Seq\n"
        "assert issubclass(Restored, transformers.AutoModelForImageTextToText)\n"
    )
    done = _run(code)
    assert done.returncode == 0, done.stderr


def test_same_result_twice_and_under_no_grad(llava: Path, quantized: tuple[nn.Module, Path]) -> None:
    with torch.no_grad():
        model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=QAIGConfig(bits=3, **FAST))
        assert not torch.is_grad_enabled()
    assert torch.equal(_logits(model, llava), _logits(quantized[0], llava))


def test_inference_mode_is_refused(llava: Path) -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        AutoModelForImageTextToText.from_pretrained(llava, quantization_config=QAIGConfig())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scales_and_outputs_have_the_models_dtype(llava: Path, dtype: torch.dtype) -> None:
    config = QAIGConfig(bits=3, **FAST)
    model = AutoModelForImageTextToText.from_pretrained(llava, dtype=dtype, quantization_config=config)
    linear = model.get_submodule(_packed(model)[0])
    assert linear.weight_scale.dtype == dtype
    assert _logits(model, llava).dtype == dtype


def test_processor_outputs_need_no_processor(llava: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((llava / name).read_bytes())
    batch = {name: torch.cat([value] * 2) for name, value in _inputs(llava).items()}
    batch["attention_mask"][0, 0] = 0
    text = {"input_ids": torch.tensor([[7, 8, 9, 7]])}
    config = QAIGConfig(bits=8, group_size=32, dataset=[batch, text, {"input_ids": [5]}])
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=config)
    full = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert _logits(model, llava).allclose(_logits(full, llava), rtol=0, atol=0.3)


# -- refused before any weight is read


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"modules_to_not_convert": ["*.mlp.*"]}, "min_coverage"),
        ({"overrides": {"*.nothing": 4}}, "nothing"),
        ({"processor": "/nowhere"}, "processor"),
        ({"dataset": []}, "sample"),
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
        AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=QAIGConfig(bits=3, **settings))


def test_flash_attention_is_refused_for_calibration(llava: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(llava)
    model.config.text_config._attn_implementation_internal = "flash_attention_2"
    quantizer = QAIGHfQuantizer(QAIGConfig(**FAST), pre_quantized=False)
    with pytest.raises(ValueError, match="sdpa"):
        quantizer.preprocess_model(model)


def test_a_newer_format_says_so_when_loading(quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    folder = _damaged(quantized[1], tmp_path, lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(format_version=2, needs_version="9.9", something_new=1)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"upgrade transformers-qaig to >= 9\.9"):
        AutoModelForImageTextToText.from_pretrained(folder)


# -- placement


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_device_map_on_one_device(llava: Path, quantized: tuple[nn.Module, Path], device_map: object) -> None:
    config = QAIGConfig(bits=3, **FAST)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config, device_map=device_map)
    assert torch.equal(_logits(model, llava), _logits(quantized[0], llava))


def test_blocks_can_be_offloaded_to_disk(llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, folder = quantized
    disk = {"model.language_model.layers.1": "disk", "model.language_model.layers.0": "cpu"}
    rest = ["model.vision_tower", "model.multi_modal_projector", "model.language_model.embed_tokens", "lm_head",
            "model.language_model.norm", "model.language_model.rotary_emb"]  # fmt: skip
    device_map = {**disk, **dict.fromkeys(rest, "cpu")}
    config = QAIGConfig(bits=3, offload_folder=tmp_path / "offload", **FAST)
    offloaded = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config, device_map=device_map)
    packed = offloaded.get_submodule("model.language_model.layers.1.mlp.up_proj.weight_packed".rpartition(".")[0])
    assert packed.weight_packed.device.type == "meta"
    assert torch.equal(_logits(offloaded, llava), _logits(model, llava))
    offloaded.save_pretrained(tmp_path / "again")
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "again")
    assert torch.equal(_logits(reloaded, llava), _logits(model, llava))

    loaded = AutoModelForImageTextToText.from_pretrained(
        folder, device_map=device_map, offload_folder=tmp_path / "offload2"
    )
    assert torch.equal(_logits(loaded, llava), _logits(model, llava))


# -- saving and loading


def _run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "TOKENIZERS_PARALLELISM": "false", **env}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_reloads_in_a_new_process_bit_by_bit(llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, folder = quantized
    torch.save(_inputs(llava), tmp_path / "inputs.pt")
    code = (
        "import sys, torch, transformers_qaig\n"
        "from transformers import AutoModelForImageTextToText as Auto\n"
        f"model = Auto.from_pretrained({str(folder)!r})\n"
        f"inputs = torch.load({str(tmp_path / 'inputs.pt')!r})\n"
        "with torch.no_grad():\n"
        f"    torch.save(model(**inputs).logits, {str(tmp_path / 'logits.pt')!r})\n"
    )
    done = _run(code)
    assert done.returncode == 0, done.stderr
    assert "UNEXPECTED" not in done.stdout + done.stderr
    assert "MISSING" not in done.stdout + done.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt"), _logits(model, llava))


def test_opened_without_the_plugin_it_fails_instead_of_answering(quantized: tuple[nn.Module, Path]) -> None:
    code = (
        "from transformers import AutoModelForImageTextToText as Auto\n"
        f"Auto.from_pretrained({str(quantized[1])!r})\nprint('ANSWERED')\n"
    )
    done = _run(code)
    assert done.returncode != 0
    assert "ANSWERED" not in done.stdout


def test_shards_reload_equal(llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, _ = quantized
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(_logits(AutoModelForImageTextToText.from_pretrained(tmp_path), llava), _logits(model, llava))


def test_saved_again_after_loading_nothing_changes(quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    _, folder = quantized
    AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(tmp_path)
    first, second = (load_file(path / "model.safetensors") for path in (folder, tmp_path))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((folder / "config.json").read_text()) == json.loads((tmp_path / "config.json").read_text())


def test_the_same_tensors_load_as_compressed_tensors(llava: Path, tmp_path: Path) -> None:
    """Without the guard and under the other method's name, Transformers' own quantizer gives the same logits."""
    config = QAIGConfig(bits=3, sym=True, **FAST)
    model = AutoModelForImageTextToText.from_pretrained(llava, dtype=torch.bfloat16, quantization_config=config)
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    plan = settings["quantization_config"]["plan"]
    tensors = load_file(tmp_path / "model.safetensors")
    empty = [name for name, tensor in tensors.items() if tensor.numel() == 0]
    assert len(empty) == 1
    del tensors[empty[0]]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})

    groups: dict[tuple, list[str]] = {}
    for path, entry in plan.items():
        groups.setdefault((entry["bits"], entry["group_size"]), []).append(path)
    settings["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {
                "targets": paths,
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "channel" if size == -1 else "group",
                    "group_size": None if size == -1 else size,
                },
            }
            for i, ((bits, size), paths) in enumerate(groups.items())
        },
        "ignore": ["lm_head", "re:.*vision.*", "re:.*multi_modal_projector.*"],
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    other = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert other.config.quantization_config.quant_method == "compressed-tensors"
    assert torch.equal(_logits(other, llava), _logits(model, llava))


def test_the_base_model_loads_from_a_full_checkpoint(quantized: tuple[nn.Module, Path]) -> None:
    base = AutoModel.from_pretrained(quantized[1])
    assert len(_packed(base)) == len(_packed(quantized[0]))


def test_the_hubs_config_wins_over_a_given_one(quantized: tuple[nn.Module, Path]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(quantized[1], quantization_config=QAIGConfig(bits=8))
    assert model.config.quantization_config.bits == 3


def test_dequantized_it_is_an_ordinary_model_again(
    llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(quantized[1])
    model.dequantize()
    assert not _packed(model)
    torch.testing.assert_close(_logits(model, llava), _logits(quantized[0], llava))
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(_logits(AutoModelForImageTextToText.from_pretrained(tmp_path), llava), _logits(model, llava))


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    from tests.families import build

    model, processor = build("gemma3")  # ties its head to its embeddings
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "fp")
    processor.save_pretrained(tmp_path / "fp")
    config = QAIGConfig(bits=4, **FAST)
    AutoModelForImageTextToText.from_pretrained(tmp_path / "fp", quantization_config=config).save_pretrained(
        tmp_path / "q"
    )
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "q")
    assert again.lm_head.weight is again.get_input_embeddings().weight
    with safe_open(tmp_path / "q" / "model.safetensors", "pt") as stored:
        assert sum(key.endswith(("lm_head.weight", "embed_tokens.weight")) for key in stored.keys()) == 1


# -- damaged checkpoints


def _damaged(folder: Path, target: Path, change) -> Path:
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def _find(tensors: dict[str, Tensor], ending: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(ending))


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
    with pytest.raises(ValueError, match=rf"1\.mlp\.{linear}\.{part}"):
        AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.parametrize(("part", "value"), [("weight_scale", float("nan")), ("weight_shape", 7)])
def test_damaged_contents_are_an_error_too(
    quantized: tuple[nn.Module, Path], tmp_path: Path, part: str, value: float
) -> None:
    folder = _damaged(quantized[1], tmp_path, lambda tensors: tensors[_find(tensors, f"up_proj.{part}")].fill_(value))
    with pytest.raises(ValueError, match=rf"up_proj\.{part}"):
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


@pytest.mark.parametrize("damage", ["twice", "no plan", "other path", "other bits"])
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
    else:
        plan[path]["bits"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"plan|damaged|match"):
        AutoModelForImageTextToText.from_pretrained(folder)


# -- resuming


def test_an_interrupted_run_resumes_where_it_stopped(
    llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers_qaig.calibrate as conductor

    work, real = tmp_path / "work", conductor.quantize_block
    treated = []

    def stop_at_second(block, path, *args):
        treated.append(path)
        if len(treated) == 2:
            raise KeyboardInterrupt
        return real(block, path, *args)

    config = QAIGConfig(bits=3, work_dir=work, **FAST)
    monkeypatch.setattr(conductor, "quantize_block", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    assert len(list(work.glob("*.safetensors"))) == 1
    assert not list(work.glob("*.tmp"))
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    assert treated[1:] == treated[1:2] + list(find_blocks(model))[1:]
    assert [block.resumed for block in model.qaig_report.blocks] == [True, False]
    assert torch.equal(_logits(model, llava), _logits(quantized[0], llava))


def test_a_work_folder_of_another_run_is_refused(llava: Path, tmp_path: Path) -> None:
    def run(**settings) -> None:
        config = QAIGConfig(bits=3, work_dir=tmp_path, **FAST, **settings)
        AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)

    run(num_samples=2)
    with pytest.raises(ValueError, match="work_dir"):
        run(num_samples=3)
