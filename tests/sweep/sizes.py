"""Shrinks a configuration by the names that the sizes of most families share."""

import re
from typing import Any

VOCABULARY, LAYERS = 320, 2
SIZES = {
    r"(num_)?(hidden_|encoder_|decoder_)?layers|depth|n_layers?|num_blocks|.*_num_hidden_layers": LAYERS,
    r"(text_|vision_|encoder_|decoder_|out_|patch_embed_|cross_attention_|backbone_|mm_|moe_)?hidden_size": 64,
    r"d_model|(vision_|word_)?embed_(proj_)?dim|n_embd|hidden_dim|base_channels": 64,
    r"projection_dim|(vision_)?output_dim|(text|out)_dim": 64,
    r"(moe_|shared_experts?_|moe_shared_expert_|expert_)?intermediate_size(_mlp)?|d_ff|mlp_dim": 96,
    r"(expert_)?ffn_(hidden_size|dim)|(encoder|decoder)_ffn_dim|share_expert_dim": 96,
    r"(num_|encoder_|decoder_)?(attention_)?heads|n_heads?|n_head|num_sliding_attention_heads": 4,
    r"num_key_value_heads|num_kv_heads|num_experts_per_tok|top_k_experts|moe_k|moe_topk": 2,
    r"(qk_|v_|global_|attention_)?head_dim|d_kv|qk_(nope|rope)_head_dim|linear_(key|value)_head_dim": 16,
    r"n_routed_experts|num_(local_)?experts|n_experts|moe_num_experts": 4,
    r"n_group|topk_group|first_k_dense_replace": 1,
    r"linear_num_(key|value)_heads": 2,
    r"q_lora_rank|kv_lora_rank|laurel_rank|hidden_size_per_layer_input": 32,
    r"(codebook|(unpadded_)?vocab)_size(_per_layer_input)?|num_embeddings": VOCABULARY,
    r"sliding_window|attention_chunk_size": 16,
    r"max_position_embeddings|max_sequence_length|n_positions": 256,
}
"""Regular expressions of names → the largest size."""
TOKEN = re.compile(r".*token_(id|index)$|.*_token_ids$")
DEPTHS = ("num_hidden_layers", "num_layers", "n_layers")


def shrunk(values: dict[str, Any]) -> dict[str, Any]:
    """Shrinks the sizes of a configuration, and moves its special tokens into the small vocabulary.

    Of its layers as many stay as are needed; what the configuration says about each layer stays for those.
    """
    depth = next((values[name] for name in DEPTHS if isinstance(values.get(name), int)), 0)
    kept = _kept_layers(values, depth)
    return {name: _small(name, value, depth, kept) for name, value in values.items()}


def _kept_layers(values: dict[str, Any], depth: int) -> list[int]:
    """Chooses the layers that stay: of different kinds, the later ones, which most of a model's layers are like."""
    told = [v for v in values.values() if isinstance(v, list) and len(v) == depth and v and isinstance(v[0], str)]
    kinds = list(zip(*told)) if told else [()] * depth
    first = sorted({kinds.index(kind) for kind in kinds})[-LAYERS:]
    others = [layer for layer in range(depth) if layer not in first]
    return sorted(first + others[: LAYERS - len(first)])


def _small(name: str, value: Any, depth: int, kept: list[int]) -> Any:
    if name == "per_layer_config":
        return {}
    if isinstance(value, dict):
        return _small_rope(value) if "rope" in name else shrunk({str(key): each for key, each in value.items()})
    if isinstance(value, list):
        if len(value) == depth > LAYERS:
            value = list(range(LAYERS)) if value == list(range(depth)) else [value[layer] for layer in kept]
        return [_small(name, each, 0, []) for each in value]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if TOKEN.match(name) and value >= VOCABULARY:
        return 4 + sum(map(ord, name)) % 60
    return next((min(size, value) for pattern, size in SIZES.items() if re.fullmatch(pattern, name)), value)


def _small_rope(rope: dict[str, Any]) -> dict[str, Any]:
    return {**rope, "mrope_section": [2, 3, 3]} if "mrope_section" in rope else rope
