"""Writes the tower and the projector of LLaVA as llama.cpp's mmproj file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ....structure import find_vision_tower
from ....utils.quote import quote
from ..refusals import Refusal
from ..saved_model import SavedModel
from .file import GGUFFile

_ACTIVATIONS = {"siglip_vision_model": "gelu_pytorch_tanh", "clip_vision_model": "quick_gelu"}
"""`model_type` of a tower → its activation function, which llama.cpp computes exactly."""
_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_OUTSIDE_LAYERS = {
    "embeddings.class_embedding": "v.class_embd",
    "embeddings.patch_embedding": "v.patch_embd",
    "embeddings.position_embedding": "v.position_embd",
    "pre_layrnorm": "v.pre_ln",
}
_PROJECTOR = {"linear_1": "mm.0", "linear_2": "mm.2"}


@dataclass(frozen=True)
class Tower:
    """The parts of a model that the mmproj file holds.

    Attributes:
        path: of the tower.
        projector: path of the projector.
    """

    path: str
    projector: str

    def holds(self, name: str) -> bool:
        """Whether a module or tensor is of the tower or the projector."""
        return name.startswith((f"{self.path}.", f"{self.projector}."))


def find(saved: SavedModel) -> Tower | None:
    """Finds tower and projector; None for a text model."""
    try:
        found = find_vision_tower(saved.model)
    except ValueError:
        return None
    towers = [path for path, module in found.items() if isinstance(module, PreTrainedModel)]
    others = [path for path in found if path not in towers]
    return Tower(towers[0] if towers else next(iter(found)), others[0] if others else "")


def refusals(saved: SavedModel) -> Iterator[Refusal]:
    """Yields what the mmproj file cannot hold of a tower."""
    if (tower := find(saved)) is None:
        return
    config = saved.model.config
    vision = getattr(config, "vision_config", None)
    kind = getattr(vision, "model_type", None)
    if config.model_type != "llava" or kind not in _ACTIVATIONS:
        yield Refusal(
            f"this export writes LLaVA's tower of SigLIP or CLIP, not {quote(config.model_type)}'s of {quote(kind)}",
            "export as compressed-tensors or mlx",
        )
        return
    assert vision is not None
    layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
    wanted = "full" if kind == "siglip_vision_model" else "default"
    wrong = {
        "vision_feature_layer": (layer, isinstance(layer, int)),
        "vision_feature_select_strategy": (strategy, strategy == wanted),
        "hidden_act of the tower": (vision.hidden_act, vision.hidden_act == _ACTIVATIONS[kind]),
        "projector_hidden_act": (config.projector_hidden_act, config.projector_hidden_act == "gelu"),
        "the image processor's mean": (None, "image_mean" in _preprocessing(saved)),
    }
    for name, (value, is_right) in wrong.items():
        if not is_right:
            yield Refusal(
                f"llama.cpp computes LLaVA with another {name} than {quote(value)}", "export as compressed-tensors"
            )
    if set(_PROJECTOR) != {name for name, _ in saved.model.get_submodule(tower.projector).named_children()} - {"act"}:
        yield Refusal("llama.cpp has a projector of two linears", "export as compressed-tensors")


def write(saved: SavedModel, file: Path) -> None:
    """Writes tower and projector. Layers above the one whose output is read are left out."""
    tower = find(saved)
    assert tower is not None
    config, vision = saved.model.config, saved.model.config.vision_config
    layer = config.vision_feature_layer
    count = vision.num_hidden_layers + 1 + layer if layer < 0 else layer
    out = GGUFFile(saved, file, "clip")
    _write_settings(out, config, count, _preprocessing(saved))
    for packed in saved.packed.values():
        if (name := _gguf_name(tower, f"{packed.path}.weight", count)) is not None:
            out.add_packed(name, packed)
    for _, model_name, _ in saved.unpacked_tensors():
        if (name := _gguf_name(tower, model_name, count)) is not None:
            out.add_unpacked(name, model_name)
    out.finish()


def _write_settings(out: GGUFFile, config: Any, count: int, preprocessing: dict[str, Any]) -> None:
    settings, vision = out.settings, config.vision_config
    settings.add_type("mmproj")
    settings.add_clip_has_vision_encoder(True)
    settings.add_clip_projector_type("mlp")
    settings.add_vision_image_size(vision.image_size)
    settings.add_vision_patch_size(vision.patch_size)
    settings.add_vision_embedding_length(vision.hidden_size)
    settings.add_vision_feed_forward_length(vision.intermediate_size)
    settings.add_vision_block_count(count)
    settings.add_vision_head_count(vision.num_attention_heads)
    settings.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    settings.add_vision_projection_dim(config.text_config.hidden_size)
    settings.add_vision_use_gelu(vision.model_type == "siglip_vision_model")
    settings.add_array("clip.vision.feature_layer", [count])
    settings.add_vision_image_mean(preprocessing["image_mean"])
    settings.add_vision_image_std(preprocessing["image_std"])


def _preprocessing(saved: SavedModel) -> dict[str, Any]:
    """Reads the settings of the image processor; empty if there are none."""
    for name, key in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        file = saved.folder / name
        if file.is_file() and file.stat().st_size < 1 << 20:
            read = json.loads(file.read_text(encoding="utf-8"))
            found = read.get(key, {}) if key else read
            if isinstance(found, dict) and {"image_mean", "image_std"} <= found.keys():
                return found
    return {}


def _gguf_name(tower: Tower, name: str, count: int) -> str | None:
    """Returns llama.cpp's name of a tensor; None for one that the file leaves out."""
    module, _, part = name.rpartition(".")
    if module.startswith(f"{tower.projector}."):
        found = _PROJECTOR.get(module.removeprefix(f"{tower.projector}."))
        return f"{found}.{part}" if found else None
    if not name.startswith(f"{tower.path}."):
        return None
    below = module.removeprefix(f"{tower.path}.").removeprefix("vision_model.")
    if name.endswith("embeddings.class_embedding"):
        return _OUTSIDE_LAYERS["embeddings.class_embedding"]
    if below in _OUTSIDE_LAYERS:
        return f"{_OUTSIDE_LAYERS[below]}.{part}"
    parts = below.split(".", 3)
    if parts[:2] != ["encoder", "layers"] or int(parts[2]) >= count or parts[3] not in _LAYER:
        return None
    return f"v.blk.{parts[2]}.{_LAYER[parts[3]]}.{part}"
