"""Accelerate's own functions on a loaded, packed model: what they offload computes as before."""

from pathlib import Path

import accelerate
import torch
from torch import nn
from transformers import AutoModelForImageTextToText as Auto

from tests.lifecycle import logits
from transformers_qaig.formats.packing import CHECKPOINT_LAYOUT
from transformers_qaig.nn.packed_tensors import PackedTensors

LAYER = "model.language_model.layers.1"


def load(folder: Path) -> tuple[nn.Module, torch.Tensor]:
    model = Auto.from_pretrained(folder)
    return model, logits(model, folder)


def test_cpu_offload_computes_the_same(quantized: tuple[nn.Module, Path]) -> None:
    model, before = load(quantized[1])
    accelerate.cpu_offload(model, "cpu")
    assert torch.equal(logits(model, quantized[1]), before)
    assert model.get_submodule(f"{LAYER}.mlp.up_proj").is_offloaded


def test_disk_offload_computes_the_same(quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, before = load(quantized[1])
    accelerate.disk_offload(model, tmp_path / "offload", "cpu")
    assert torch.equal(logits(model, quantized[1]), before)


def test_a_dispatched_model_computes_the_same(quantized: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, before = load(quantized[1])
    device_map = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    names = [name for name, _ in model.model.language_model.named_children()]
    device_map |= {f"model.language_model.{name}": "cpu" for name in names if name != "layers"}
    device_map |= {f"model.language_model.layers.{i}": "disk" if i else "cpu" for i in range(2)}
    accelerate.dispatch_model(model, device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert torch.equal(logits(model, quantized[1]), before)
    kept = model.get_submodule(f"{LAYER[:-1]}0.mlp.up_proj")
    assert isinstance(kept, PackedTensors)
    assert kept.layout != CHECKPOINT_LAYOUT  # what stays in memory keeps its kernel layout


def test_a_map_is_inferred_from_packed_sizes(quantized: tuple[nn.Module, Path]) -> None:
    model, _ = load(quantized[1])
    size = accelerate.utils.compute_module_sizes(model)[""]
    device_map = accelerate.infer_auto_device_map(model, max_memory={"cpu": size * 2})
    assert set(device_map.values()) == {"cpu"}
    assert "disk" in accelerate.infer_auto_device_map(model, max_memory={"cpu": size // 2}).values()


def test_a_checkpoint_is_loaded_and_dispatched(quantized: tuple[nn.Module, Path]) -> None:
    """The names in the file are the model's own here, as Accelerate needs them."""
    model, before = load(quantized[1])
    folder = quantized[1].parent / "own-names"
    if not folder.exists():
        accelerate.Accelerator(cpu=True).save_model(model, folder)
    accelerate.load_checkpoint_and_dispatch(model, folder, {"": "cpu"})
    assert torch.equal(logits(model, quantized[1]), before)
