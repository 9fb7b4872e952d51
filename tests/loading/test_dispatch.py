"""Where a quantized model goes: planned before any weight is read, and done as planned."""

import logging
import shutil
from collections import UserDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText as Auto

from tests.lifecycle import logits, packed
from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.config.devices import bytes_by_device
from transformers_qaig.formats.scheme import WeightScheme, parse_plan
from transformers_qaig.loading.skeleton import likely_plan, packed_skeleton
from transformers_qaig.nn import PackedModule

RTN = {"bits": 4, "group_size": 32, "recipe": "rtn"}
LAYER = "model.language_model.layers.1"


@pytest.fixture(scope="module")
def unread(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with weights cut short: reading any of them fails with another error."""
    folder = shutil.copytree(llava, tmp_path_factory.mktemp("unread") / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: t.reshape(-1)[:1].clone() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


@pytest.fixture(scope="module")
def in_memory(llava: Path) -> nn.Module:
    return Auto.from_pretrained(llava, quantization_config=QAIGConfig(**RTN))


def quantize(folder: Path, settings: dict | None = None, **arguments: object) -> nn.Module:
    return Auto.from_pretrained(folder, quantization_config=QAIGConfig(**RTN, **(settings or {})), **arguments)


# -- refused before any weight is read


@pytest.mark.parametrize(
    ("arguments", "settings", "named"),
    [
        ({"device_map": {"": "cuda:77"}}, {}, r"`device_map\[''\]` says 'cuda:77'"),
        ({"device_map": "cuda:77"}, {}, "device_map.*cuda"),
        ({"device_map": {"": 77}}, {}, r"device_map.*77.*[^.]\. Name a device"),
        ({"dtype": torch.float64}, {}, r"Load the model with dtype=torch\.float32"),
        ({"device_map": "vulkan"}, {}, "PyTorch finds no 'vulkan' device here, only .*cpu"),
        ({"device_map": {"": "nonsense"}}, {}, "device_map.*nonsense"),
        ({"device_map": {"": "meta"}}, {}, "device_map.*meta"),
        ({"device_map": {"": None}}, {}, "device_map.*None"),
        ({"device_map": {"": True}}, {}, "device_map.*True"),
        ({"device_map": {1: "cpu"}}, {}, "device_map.*paths"),
        ({"device_map": ["cpu"]}, {}, r"device_map.*\['cpu'\]"),
        ({"device_map": {"model.language_model": "cpu", LAYER: "disk"}, "offload_folder": "x"}, {}, "vision_tower"),
        ({"device_map": {"lm_head": "cpu"}}, {}, "device_map.*other tensors"),
        ({"device_map": {"": "cpu", "model.language_modle": "cpu"}}, {}, "Did you mean 'model.language_model'"),
        ({"device_map": {"": "disk"}}, {}, "offload_folder"),
        ({"device_map": "auto", "max_memory": {"cpu": "100KB"}}, {}, "go to disk.*offload_folder"),
        ({"device_map": "auto", "max_memory": {"cpu": "lots"}}, {}, "max_memory.*lots"),
        ({"device_map": "auto", "max_memory": {77: "1GiB"}}, {}, "max_memory.*77"),
        ({"device_map": {"": "disk"}, "offload_folder": "/proc/nowhere"}, {}, "offload_folder.*/proc/nowhere"),
        ({"device_map": {"": "disk"}, "offload_folder": __file__}, {}, "offload_folder"),
        ({"device_map": {"": "disk"}, "offload_folder": 5}, {}, "offload_folder.*5"),
        (
            {"device_map": "auto", "max_memory": {"cpu": "100KB", "disk": "1KB"}, "offload_folder": "x"},
            {},
            "max_memory.*1,000",
        ),
        ({}, {"calibration": {"device": "cuda:77"}}, "CalibrationConfig.*77"),
        ({}, {"calibration": {"work_dir": "/proc/nowhere"}}, "work_dir.*/proc/nowhere"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(
    unread: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict, settings: dict, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=named):
        quantize(unread, settings, **arguments)


@pytest.mark.parametrize(
    "memory",
    [{"cpu": "10"}, {"cpu": -1}, {"cpu": True}, {"cpu": None}, {"cpu": float("inf")}, {"cuda:0": 1}, {-1: 1}, ["cpu"]],
)
def test_memory_that_cannot_be_read_is_refused(memory: object) -> None:
    with pytest.raises(ValueError, match="max_memory"):
        bytes_by_device(memory)


def test_a_full_disk_is_found_before(unread: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(ValueError, match="0 free"):
        quantize(unread, device_map={"": "disk"}, offload_folder=tmp_path)
    assert not list(tmp_path.iterdir())


# -- done as planned


@pytest.mark.parametrize(
    "device_map",
    [
        {"": "disk"},
        {"": "cpu", LAYER: "disk"},
        {"": "disk", LAYER: "cpu"},
        UserDict({"model": "disk", "lm_head": "cpu"}),
        {"model": torch.device("cpu"), "lm_head": "disk"},
    ],
)
def test_any_part_can_go_to_disk(llava: Path, in_memory: nn.Module, tmp_path: Path, device_map: dict) -> None:
    model = quantize(llava, device_map=device_map, offload_folder=tmp_path / "offload")
    assert torch.equal(logits(model, llava), logits(in_memory, llava))
    model.save_pretrained(tmp_path / "saved")
    in_memory.save_pretrained(tmp_path / "wanted")
    saved, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("saved", "wanted"))
    assert saved.keys() == wanted.keys()
    assert all(torch.equal(saved[name], wanted[name]) for name in wanted)
    again = Auto.from_pretrained(
        tmp_path / "saved", device_map=model.hf_device_map, offload_folder=tmp_path / "reloaded"
    )
    assert torch.equal(logits(again, llava), logits(in_memory, llava))


def test_a_relative_folder_is_found_from_another_working_directory(
    llava: Path, in_memory: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = quantize(llava, device_map={"": "cpu", LAYER: "disk"}, offload_folder="offload")
    monkeypatch.chdir("/")
    assert torch.equal(logits(model, llava), logits(in_memory, llava))


@pytest.mark.parametrize("how", ["auto", "balanced", "balanced_low_0", "sequential"])
def test_max_memory_is_honoured_by_packed_sizes(llava: Path, in_memory: nn.Module, tmp_path: Path, how: str) -> None:
    """Of 800 kB in float32, some 390 kB packed, 300 kB may stay in memory, embeddings and tower among them."""
    model = quantize(llava, device_map=how, max_memory={"cpu": "300KB"}, offload_folder=tmp_path)
    held = sum(t.numel() * t.element_size() for t in model.state_dict().values() if not t.is_meta)
    assert 150_000 < held <= 300_000
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    assert torch.equal(logits(model, llava), logits(in_memory, llava))


def test_what_fits_once_packed_stays_in_memory(llava: Path, in_memory: nn.Module) -> None:
    size = sum(t.numel() * t.element_size() for t in in_memory.state_dict().values())
    full = sum(t.numel() * t.element_size() for t in Auto.from_pretrained(llava).state_dict().values())
    assert full > 1.5 * size
    model = quantize(llava, device_map="sequential", max_memory={"cpu": int(1.4 * size)})
    assert not any(t.is_meta for t in model.state_dict().values())


def test_a_model_that_cannot_be_placed_is_not_lost(
    llava: Path, in_memory: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accelerate.utils.offload_weight", full)
    with caplog.at_level(logging.ERROR, "transformers.qaig"):
        model = quantize(llava, device_map={"": "cpu", LAYER: "disk"}, offload_folder=tmp_path)
    assert "stays on the CPU" in caplog.text
    assert torch.equal(logits(model, llava), logits(in_memory, llava))


def test_a_placement_under_a_budget_is_planned_too(llava: Path, tmp_path: Path) -> None:
    budget = BitBudget(5.0, candidates=(3, 4, 8), cost="output_error")
    config = QAIGConfig(group_size=32, budget=budget, num_samples=2, recipe="rtn")
    memory = {"cpu": "300KB"}
    model = Auto.from_pretrained(
        llava, quantization_config=config, device_map="auto", max_memory=memory, offload_folder=tmp_path
    )
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    held = sum(t.numel() * t.element_size() for t in model.state_dict().values() if not t.is_meta)
    assert held <= 1.05 * 300_000


# -- the skeleton


def test_the_skeleton_is_the_packed_model_without_content(llava: Path, in_memory: nn.Module) -> None:
    model = Auto.from_pretrained(llava)
    skeleton = packed_skeleton(model, parse_plan(in_memory.config.quantization_config.plan))
    described = {name: (t.shape, t.dtype) for name, t in skeleton.state_dict().items()}
    assert described == {name: (t.shape, t.dtype) for name, t in in_memory.state_dict().items()}
    assert all(t.is_meta for t in skeleton.state_dict().values())
    assert not any(isinstance(module, PackedModule) for module in model.modules())
    assert packed(skeleton) == packed(in_memory)


def test_a_likely_plan_uses_up_the_budget() -> None:
    from transformers_qaig.plan.allocate import SchemeOption

    options = {
        f"layers.{i}": [SchemeOption(WeightScheme(b, 32, sym=True), 1000 * b, 0.0) for b in (2, 3, 4, 8)]
        for i in range(10)
    }
    plan = likely_plan(options, 45_000, [])
    assert 44_000 <= sum(1000 * scheme.bits for scheme in plan.values()) <= 45_000


def test_a_packed_model_names_a_device_that_is_not_there(llava: Path, tmp_path: Path) -> None:
    quantize(llava).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`device_map\[''\]` says .*vulkan.*: PyTorch finds no 'vulkan' device here"):
        Auto.from_pretrained(tmp_path, device_map="vulkan")
