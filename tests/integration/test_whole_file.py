"""Tower, projector, embeddings and head packed too: from the request to the file and back."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from tests.families import FAMILIES, samples, save
from tests.lifecycle import FAST, inputs, logits, logits_in_a_new_process, packed
from tests.tolerance import assert_close, rounding, terms_of
from transformers_qaig import BitBudget, QAIGConfig, QAIGLinear
from transformers_qaig.calibration import row_chunks, target_quantizer
from transformers_qaig.execution import out_of_memory as memory
from transformers_qaig.formats.packing import CHECKPOINT_LAYOUT, CPU_LAYOUT
from transformers_qaig.kernels import extension
from transformers_qaig.nn import QAIGEmbedding
from transformers_qaig.structure import find_input_embeddings, find_lm_head, find_vision_tower

WHOLE = {"vision_bits": 8, "embedding_bits": 8, "lm_head_bits": 8}
TIED = ("gemma3", "internvl", "paligemma", "mistral3")
QUICK = ("llava", "qwen2_5_vl", "gemma3")


def quantize(folder: Path, **settings) -> nn.Module:
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=QAIGConfig(**{**FAST, **settings}))


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family that ties its head to its embeddings, and scales what it looks up."""
    folder = tmp_path_factory.mktemp("gemma3")
    save("gemma3", folder, dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def tied(gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    folder = tmp_path_factory.mktemp("tied")
    model = quantize(gemma3, bits=4, recipe="rtn", vision_bits=4, embedding_bits=4)
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def untied(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    folder = tmp_path_factory.mktemp("untied")
    model = quantize(llava, bits=3, recipe="rtn", vision_bits=4, embedding_bits=5, lm_head_bits=6)
    model.save_pretrained(folder)
    return model, folder


def linears(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, QAIGLinear) or type(m) is nn.Linear]


@pytest.mark.parametrize("family", [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FAMILIES])
def test_every_family_is_packed_whole_and_reloads_bit_by_bit(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / "fp")
    model = quantize(tmp_path / "fp", bits=8, calibration={"min_coverage": 0.1}, **WHOLE)
    table, head = find_input_embeddings(model), find_lm_head(model)
    assert isinstance(table.module, QAIGEmbedding)
    assert isinstance(head.module, QAIGLinear)
    for path, part in find_vision_tower(model).items():
        assert all(isinstance(m, QAIGLinear) or min(m.weight.shape) < 32 for m in linears(part)), path
    plan = model.config.quantization_config.plan
    assert sorted(plan) == sorted(packed(model))
    treated = [summary.path for summary in model.qaig_report.blocks]
    assert len(treated) == len(set(treated))
    assert all(0 < summary.error < 0.1 for summary in model.qaig_report.blocks)

    ours = logits(model, tmp_path / "fp")
    reference = logits(AutoModelForImageTextToText.from_pretrained(tmp_path / "fp"), tmp_path / "fp")
    assert torch.corrcoef(torch.stack([ours.flatten().float(), reference.flatten().float()]))[0, 1] > 0.99
    model.save_pretrained(tmp_path / "q")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "q")
    assert torch.equal(logits(again, tmp_path / "fp"), ours)
    assert (
        are_tied_in_memory(again)
        == are_tied_in_memory(model)
        == (family in ("gemma3", "internvl", "paligemma", "mistral3"))
    )


def are_tied_in_memory(model: nn.Module) -> bool:
    return find_lm_head(model).module.weight_packed is find_input_embeddings(model).module.weight_packed


@pytest.mark.parametrize("which", ["tied", "untied"])
def test_reloads_in_a_new_process(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model, folder = request.getfixturevalue(which)
    source = request.getfixturevalue({"tied": "gemma3", "untied": "llava"}[which])
    assert torch.equal(logits_in_a_new_process(folder, source, tmp_path), logits(model, source))


@pytest.mark.parametrize("which", ["tied", "untied"])
def test_the_report_tells_the_size_of_the_file(which: str, request: pytest.FixtureRequest) -> None:
    model, folder = request.getfixturevalue(which)
    stored = sum(
        8 * tensor.element_size() * tensor.numel() for tensor in load_file(folder / "model.safetensors").values()
    )
    coverage = model.qaig_report.coverage
    assert coverage.whole.saved == stored
    assert coverage.whole.full > 3 * stored  # float32
    assert sum(size.saved for size in coverage.sizes.values()) == stored
    assert find_input_embeddings(model).path in str(model.qaig_report)


# -- tied


def test_tied_tables_are_one_tensor_in_memory_and_on_disk(tied: tuple[nn.Module, Path], gemma3: Path) -> None:
    model, folder = tied
    with safe_open(folder / "model.safetensors", "pt") as stored:
        keys = [key for key in stored.keys() if "lm_head" in key or "embed_tokens" in key]
    assert len(keys) == 4
    assert all("embed_tokens" in key for key in keys)
    for one in (model, AutoModelForImageTextToText.from_pretrained(folder)):
        head, table = find_lm_head(one).module, find_input_embeddings(one).module
        assert are_tied_in_memory(one)
        assert head.layout == table.layout == (CPU_LAYOUT if extension.load() else CHECKPOINT_LAYOUT)
        one.tie_weights()
        assert are_tied_in_memory(one)
        one.to(torch.float32)
        assert are_tied_in_memory(one)
        assert torch.equal(logits(one, gemma3), logits(model, gemma3))


def test_tied_tables_in_shards_and_saved_again(tied: tuple[nn.Module, Path], gemma3: Path, tmp_path: Path) -> None:
    model, folder = tied
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "shards")
    assert torch.equal(logits(again, gemma3), logits(model, gemma3))
    again.save_pretrained(tmp_path / "again")
    first, second = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_a_device_map_keeps_the_tie(tied: tuple[nn.Module, Path], gemma3: Path, device_map: str) -> None:
    again = AutoModelForImageTextToText.from_pretrained(tied[1], device_map=device_map)
    assert are_tied_in_memory(again)
    assert torch.equal(logits(again, gemma3), logits(tied[0], gemma3))


@pytest.mark.parametrize("which", ["tied", "untied"])
@pytest.mark.parametrize("offloaded", ["tables", "tower"])
def test_offloaded_to_disk(which: str, offloaded: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model, folder = request.getfixturevalue(which)
    source = request.getfixturevalue({"tied": "gemma3", "untied": "llava"}[which])
    disk = {"tables": ("lm_head", "embed_tokens"), "tower": ("vision_tower", "multi_modal_projector")}[offloaded]
    parts = [f"model.language_model.{name}" for name, _ in model.model.language_model.named_children()]
    parts += ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    device_map = {part: "disk" if part.endswith(disk) else "cpu" for part in parts}
    again = AutoModelForImageTextToText.from_pretrained(
        folder, device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert any(p.device.type == "meta" for p in again.parameters())
    assert_close(logits(again, source), logits(model, source), terms_of(model))  # weights lie as the file has them
    again.save_pretrained(tmp_path / "again")
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(reloaded, source), logits(model, source))


# -- what a model's embeddings are expected to do


@pytest.mark.parametrize("which", ["tied", "untied"])
def test_dequantized_it_is_an_ordinary_model_again(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model, folder = request.getfixturevalue(which)
    source = request.getfixturevalue({"tied": "gemma3", "untied": "llava"}[which])
    dense = AutoModelForImageTextToText.from_pretrained(folder)
    dense.dequantize()
    assert not packed(dense)
    original = AutoModelForImageTextToText.from_pretrained(source)
    assert type(dense.get_input_embeddings()) is type(original.get_input_embeddings())
    assert (dense.lm_head.weight is dense.get_input_embeddings().weight) == (which == "tied")
    assert_close(logits(dense, source), logits(model, source), terms_of(dense))
    dense.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(logits(again, source), logits(dense, source))
    size = dense.get_input_embeddings().num_embeddings
    assert dense.resize_token_embeddings(size + 8).num_embeddings == size + 8
    assert dense.lm_head.out_features == size + 8


def test_embeddings_are_found_and_refuse_to_be_resized(
    tied: tuple[nn.Module, Path], untied: tuple[nn.Module, Path]
) -> None:
    for model, _ in (tied, untied):
        table = model.get_input_embeddings()
        assert isinstance(table, QAIGEmbedding)
        assert isinstance(model.get_output_embeddings(), QAIGLinear)
        assert model.resize_token_embeddings() is table
        assert model.resize_token_embeddings(table.num_embeddings) is table
        for owner in (model, model.model, model.model.language_model):
            with pytest.raises(NotImplementedError, match="dequantize"):
                owner.resize_token_embeddings(table.num_embeddings + 1)


@pytest.mark.parametrize("which", ["tied", "untied"])
def test_copies_and_pickles_are_whole(which: str, request: pytest.FixtureRequest) -> None:
    model = AutoModelForImageTextToText.from_pretrained(request.getfixturevalue(which)[1])
    ids = torch.tensor([[3, 4, 5]])
    others = copy.deepcopy(model), pickle.loads(pickle.dumps(model))  # a forward leaves hooks that are not pickled
    for other in others:
        assert torch.equal(other(ids).logits, model(ids).logits)
        with pytest.raises(NotImplementedError, match="dequantize"):
            other.resize_token_embeddings(7)
        assert other.resize_token_embeddings() is other.get_input_embeddings()


def test_generates_as_its_dequantized_self(tied: tuple[nn.Module, Path], gemma3: Path) -> None:
    dense = AutoModelForImageTextToText.from_pretrained(tied[1])
    dense.dequantize()
    answers = [m.generate(**inputs(gemma3), max_new_tokens=5, do_sample=False) for m in (tied[0], dense)]
    assert torch.equal(*answers)


@pytest.mark.parametrize("which", ["tied", "untied"])
def test_a_base_model_does_without_the_head(
    which: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    model, folder = request.getfixturevalue(which)
    base = AutoModel.from_pretrained(folder)
    assert "UNEXPECTED" not in caplog.text
    assert len(packed(base)) == len(packed(model)) - 1
    assert torch.equal(base.get_input_embeddings().dequantize(), model.get_input_embeddings().dequantize())


# -- damage


def damaged(folder: Path, target: Path, change=lambda tensors: None, replan=lambda plan: None) -> Path:
    settings = json.loads((folder / "config.json").read_text())
    replan(settings["quantization_config"]["plan"])
    (target / "config.json").write_text(json.dumps(settings))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


TABLE = "model.language_model.embed_tokens"


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_zero_point", "weight_shape"])
@pytest.mark.parametrize("which", ["tied", "untied"])
def test_damaged_embeddings_are_named(which: str, part: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    _, folder = request.getfixturevalue(which)
    names = [name for name in load_file(folder / "model.safetensors") if name.endswith(f"embed_tokens.{part}")]
    assert len(names) == 1

    def shorten(tensors) -> None:
        tensors[names[0]] = tensors[names[0]][:-1].clone()

    for change in (shorten, lambda tensors: tensors.pop(names[0])):
        with pytest.raises(ValueError, match=rf"embed_tokens\.{part}"):
            AutoModelForImageTextToText.from_pretrained(damaged(folder, tmp_path, change))


def test_a_plan_that_packs_other_tables_is_refused(tied: tuple[nn.Module, Path], tmp_path: Path) -> None:
    entry = {"bits": 4, "group_size": 32, "sym": False}
    positions = "model.vision_tower.embeddings.position_embedding"
    with pytest.raises(ValueError, match="neither a linear layer nor an expert nor the embeddings"):
        AutoModelForImageTextToText.from_pretrained(
            damaged(tied[1], tmp_path, replan=lambda plan: plan.update({positions: entry}))
        )
    with pytest.raises(ValueError, match="in different ways"):
        AutoModelForImageTextToText.from_pretrained(damaged(tied[1], tmp_path, replan=lambda plan: plan.pop("lm_head")))


# -- calibration


def test_the_language_model_is_calibrated_on_the_quantized_towers_features(
    llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = {}, target_quantizer.quantize_block

    def spy(block, path, schemes, inputs, settings):
        seen[path] = [(call.args, inputs.quantized[sample].args) for sample, call in inputs.full.items()]
        return real(block, path, schemes, inputs, settings)

    monkeypatch.setattr(target_quantizer, "quantize_block", spy)
    model = quantize(llava, bits=8, vision_bits=2, embedding_bits=2, lm_head_bits=8)
    arrived = []
    for one in (AutoModelForImageTextToText.from_pretrained(llava), model):
        block = one.get_submodule("model.language_model.layers.0")
        block.register_forward_pre_hook(lambda module, args: arrived.append(args[0]))
        with torch.no_grad():
            one(**samples(AutoProcessor.from_pretrained(llava), 1)[0])
    full, quantized = arrived
    calls = [(x, x_q) for (x, *_), (x_q, *_) in seen["model.language_model.layers.0"] if x.shape == full.shape]
    near = rounding(torch.float32, terms_of(one)) * float(full.abs().max())
    (x, x_q) = next(pair for pair in calls if torch.allclose(pair[0], full, rtol=0, atol=near))
    assert_close(x_q, quantized, terms_of(one))
    assert (x_q - x).norm() > 0.05 * x.norm()  # 2 bits are felt
    assert list(seen)[-1] == "lm_head.0"


def test_token_weights_and_8_bit_activations_reach_a_tower_without_a_batch_dimension(tmp_path: Path) -> None:
    save("qwen2_5_vl", tmp_path / "fp", dtype=torch.float32)
    model = quantize(tmp_path / "fp", bits=8, vision_bits=4, lm_head_bits=8, recipe="paper", activation_bits=8)
    importance = {summary.path: summary.importance for summary in model.qaig_report.blocks}
    assert all(importance["model.visual.blocks.1"].values())
    assert {m.activation_bits for m in model.modules() if isinstance(m, QAIGLinear)} == {8}
    model.save_pretrained(tmp_path / "q")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "q")
    assert torch.equal(logits(again, tmp_path / "fp"), logits(model, tmp_path / "fp"))


def test_an_interrupted_run_resumes(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"bits": 3, "vision_bits": 3, "lm_head_bits": 3, "embedding_bits": 3}
    whole = quantize(llava, **settings)
    real, paths = target_quantizer.quantize_block, []

    def stop(block, path, *rest):
        paths.append(path)
        if path == "model.language_model.layers.1" and len(paths) < 6:
            raise KeyboardInterrupt
        return real(block, path, *rest)

    monkeypatch.setattr(target_quantizer, "quantize_block", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize(llava, calibration={"work_dir": tmp_path}, **settings)
    before = list(paths)
    model = quantize(llava, calibration={"work_dir": tmp_path}, **settings)
    assert paths[len(before) :] == ["model.language_model.layers.1", "lm_head.0"]
    assert torch.equal(logits(model, llava), logits(whole, llava))


def test_a_head_in_slices_is_the_head_at_once(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"bits": 4, "lm_head_bits": 3, "embedding_bits": 3, "recipe": "rtn"}
    whole = quantize(llava, **settings)
    monkeypatch.setattr(row_chunks, "ROWS_PER_CHUNK", 96)
    monkeypatch.setattr(target_quantizer, "ROWS_PER_CHUNK", 96)
    model = quantize(llava, **settings)
    assert torch.equal(model.lm_head.dequantize(), whole.lm_head.dequantize())
    assert torch.equal(logits(model, llava), logits(whole, llava))
    assert [summary.path for summary in model.qaig_report.blocks].count("lm_head") == 1


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_names_the_levers(llava: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    def fail(*_):
        raise RuntimeError("the forward of sample 3 failed") from error

    monkeypatch.setattr(target_quantizer, "quantize_block", fail)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        quantize(llava, bits=4)
    for lever in (
        "num_samples",
        "max_pixels",
        "CalibrationConfig(device=",
        "batch size",
        "model.language_model.layers.0",
    ):
        assert lever in str(caught.value)


def test_other_errors_stay_what_they_are() -> None:
    with (
        pytest.raises(RuntimeError, match="shapes") as caught,
        memory.out_of_memory_explained("here", None, 0, lambda: 0),
    ):
        raise RuntimeError("shapes differ")
    assert not isinstance(caught.value, torch.OutOfMemoryError)


def test_a_size_to_meet_counts_what_is_packed_outside_the_blocks(llava: Path, tmp_path: Path) -> None:
    size = 170_000
    outside = {"vision_bits": 4, "embedding_bits": 4, "lm_head_bits": 4}
    quantize(llava, budget=BitBudget(size=size), recipe="rtn", **outside).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert 0.9 * size < file.stat().st_size - header <= size
    with pytest.raises(ValueError, match="cannot be met"):
        quantize(llava, budget=BitBudget(size=size), recipe="rtn")
