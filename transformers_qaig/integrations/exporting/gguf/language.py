"""Writes the language model as GGUF: which architectures there are, their settings, the names and order of rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, TensorNameMap, get_tensor_name_map
from torch import Tensor

from ....structure import find_decoder_blocks, find_input_embeddings, find_lm_head
from ....utils.quote import quote
from ..refusals import Refusal
from ..saved_model import SavedModel
from .file import GGUFFile
from .tower import find as find_tower
from .vocabulary import write_vocabulary


class Architecture(NamedTuple):
    """How llama.cpp runs a kind of text model.

    Attributes:
        arch: its name there.
        interleaves: whether it rotates pairs of neighbours, so that the rows of q and k are stored in that order.
    """

    arch: MODEL_ARCH
    interleaves: bool


ARCHITECTURES = {
    "llama": Architecture(MODEL_ARCH.LLAMA, True),
    "mistral": Architecture(MODEL_ARCH.LLAMA, True),
    "qwen2": Architecture(MODEL_ARCH.QWEN2, False),
    "qwen3": Architecture(MODEL_ARCH.QWEN3, False),
}
"""`model_type` of a text config → architecture."""
_ROPE = {"default", None}


def refusals(saved: SavedModel) -> Iterator[Refusal]:
    """Yields what this export cannot write of a language model."""
    config = saved.model.config.get_text_config(decoder=True)
    if config.model_type not in ARCHITECTURES:
        yield Refusal(
            f"this export writes language models of {', '.join(ARCHITECTURES)}, not {quote(config.model_type)}",
            "export as compressed-tensors or mlx",
        )
        return
    rope = dict(getattr(config, "rope_parameters", None) or {})
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if rope.get("rope_type") not in _ROPE or (window is not None and window < config.max_position_embeddings):
        yield Refusal(
            "this export writes plain rotary embeddings and full attention, and this model has others",
            "export as compressed-tensors or mlx",
        )
    if config.hidden_act not in ("silu", "swish"):
        yield Refusal(
            f"llama.cpp computes silu in these models, not {quote(config.hidden_act)}", "export as compressed-tensors"
        )
    names, unknown = _name_map(saved), []
    prefix = _prefix(saved)
    for _, name, _ in saved.unpacked_tensors():
        if name.startswith(prefix) and _gguf_name(names, name, prefix) is None:
            unknown.append(name)
    if unknown:
        yield Refusal(
            "llama.cpp has no such tensors in this architecture", "export as compressed-tensors", tuple(unknown)
        )


def write(saved: SavedModel, file: Path) -> None:
    """Writes the language model, with its vocabulary."""
    config = saved.model.config.get_text_config(decoder=True)
    architecture = ARCHITECTURES[config.model_type]
    out = GGUFFile(saved, file, MODEL_ARCH_NAMES[architecture.arch])
    _write_settings(out, config, saved)
    write_vocabulary(saved, out.settings, config.vocab_size)
    names, prefix, head = _name_map(saved), _prefix(saved), find_lm_head(saved.model).path
    tower = find_tower(saved)
    for packed in saved.packed.values():
        name = _gguf_name(names, f"{packed.path}.weight", prefix, head)
        if name is not None and not (tower and tower.holds(packed.path)):
            out.add_packed(name, packed, _row_order(architecture, config, name))
    for _, model_name, _ in saved.unpacked_tensors():
        name = _gguf_name(names, model_name, prefix, head)
        if name is not None and not (tower and tower.holds(model_name)):
            out.add_unpacked(name, model_name, _row_order(architecture, config, name))
    out.finish()


def _prefix(saved: SavedModel) -> str:
    """Returns what the names of the language model begin with: `model.language_model.` or `model.`."""
    embeddings = find_input_embeddings(saved.model).path
    return embeddings.rpartition(".")[0] + "."


def _name_map(saved: SavedModel) -> TensorNameMap:
    config = saved.model.config.get_text_config(decoder=True)
    return get_tensor_name_map(ARCHITECTURES[config.model_type].arch, len(find_decoder_blocks(saved.model)))


def _gguf_name(names: TensorNameMap, name: str, prefix: str, head: str = "lm_head") -> str | None:
    """Returns llama.cpp's name of a tensor; None for one that is of no language model."""
    if name.startswith(f"{head}."):
        plain = name.replace(head, "lm_head", 1)
    elif name.startswith(prefix):
        plain = "model." + name.removeprefix(prefix)
    else:
        return None
    found: str | None = names.get_name(plain, try_suffixes=(".weight", ".bias"))
    return found


def _write_settings(out: GGUFFile, config: Any, saved: SavedModel) -> None:
    settings, heads = out.settings, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    settings.add_name(saved.folder.resolve().name)
    settings.add_block_count(config.num_hidden_layers)
    settings.add_context_length(config.max_position_embeddings)
    settings.add_embedding_length(config.hidden_size)
    settings.add_feed_forward_length(config.intermediate_size)
    settings.add_head_count(heads)
    settings.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    settings.add_key_length(head_dim)
    settings.add_value_length(head_dim)
    settings.add_rope_dimension_count(head_dim)
    settings.add_rope_freq_base(float((getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000.0)))
    settings.add_layer_norm_rms_eps(config.rms_norm_eps)
    settings.add_vocab_size(config.vocab_size)
    settings.add_quantization_version(2)


def _row_order(architecture: Architecture, config: Any, name: str) -> Tensor | None:
    """Returns the order of the rows of q and k where llama.cpp rotates neighbours: both halves of a head alternate."""
    if not architecture.interleaves or not any(f".attn_{which}." in name for which in "qk"):
        return None
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    count = heads if ".attn_q." in name else getattr(config, "num_key_value_heads", None) or heads
    return torch.arange(count * head_dim).view(count, 2, head_dim // 2).transpose(1, 2).reshape(-1)
