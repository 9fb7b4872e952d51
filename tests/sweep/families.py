"""What the tiny configurations of some families need besides small sizes, and what their models read besides text."""

from collections.abc import Callable
from typing import Any

import torch

from tests.tiny_models.unusual_parts import Samples, texts, with_pictures

ROPE = {"rope_type": "default", "rope_theta": 1e4}
MROPE = {**ROPE, "mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0}
TIMM = {"vision_config.architecture": "test_vit", "vision_config.model_args": {"embed_dim": 64}}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}
MAMBA = {"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "chunk_size": 16}
SMALL_VQ = {"vq_config.base_channels": 32, "vq_config.embed_dim": 8, "vq_config.latent_channels": 8}
THINKER = {"vision_start_token_id": 8, "vision_end_token_id": 9, "text_config.rope_parameters": MROPE}
PICTURE = {"vision_config.image_size": 28, "vision_config.patch_size": 14}
QUERIES = {
    **PICTURE,
    "num_query_tokens": 4,
    "image_token_index": 4,
    "video_token_index": 4,
    "qformer_config.encoder_hidden_size": 64,
    "qformer_config.cross_attention_frequency": 1,
    "text_config.word_embed_proj_dim": 64,
}

ALIKE: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (
        ("glm46v", "glm4v", "glm4v_moe", "glm_ocr", "glmga", "qwen2_vl", "qwen2_5_vl", "paddleocr_vl"),
        {"text_config.rope_parameters": MROPE},
    ),
    (("kimi_k25", "mistral_large4", "hy_v4_vl"), {"text_config.num_key_value_heads": 4}),
    (("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"), THINKER),
    (("fast_vlm", "perception_lm"), TIMM),
]
VALUES: dict[str, dict[str, Any]] = {
    **{family: values for families, values in ALIKE for family in families},
    "apertus1p5": {
        "audio_config.codebook_dim": 64,
        "image_token_offset": 100,
        "audio_token_offset": 420,
        "text_config.vocab_size": 800,
    },
    "blip": PICTURE,
    "chameleon": {"vocabulary_map": {"<image>": 5}, **SMALL_VQ},
    "cohere_compass": {"text_config.rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "deepseek_ocr2": {"text_config.num_experts_per_tok": 2, "text_config.mlp_layer_types": ["dense", "sparse"]},
    "deepseek_v3": {"num_key_value_heads": 4, "first_k_dense_replace": 1},
    "diffusion_gemma": {
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 96,
    },
    "dots3_note": {
        "text_config.num_key_value_heads": 4,
        "text_config.head_dim": 32,
        "vision_config.adapter_in_dim": 64,
        "vision_config.adapter_out_dim": 64,
        "audio_config.adapter_input_size": 64,
        "audio_config.adapter_out_dim": 64,
    },
    "emu3": {"vocabulary_map": {"<image>": 5, "<|extra_200|>": 6}, **SMALL_VQ},
    "ernie4_5_vl_moe": {"text_config.rope_parameters": {**MROPE, "mrope_section": [3, 3, 2]}},
    "gemma3n": {
        "vision_config.architecture": "test_vit",
        "text_config.num_kv_shared_layers": 0,
        "text_config.activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4": {
        "audio_config": None,
        "vision_config": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16} | HEADS,
        "text_config.enable_moe_block": True,
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 96,
        "text_config.hidden_size_per_layer_input": 32,
    },
    "glm5_next": {
        "text_config.num_key_value_heads": 4,
        "text_config.linear_num_heads": 8,
        "text_config.linear_head_dim": 64,
        "text_config.index_n_heads": 4,
        "text_config.index_head_dim": 32,
    },
    "granite4_vision": {"downsample_rate": "1/2", "deepstack_layer_map": [[0, 0]], "spatial_target_layers": [0, 1]},
    "hunyuan_vl": {"text_config.rope_parameters": MROPE, "text_config.head_dim": 16},
    "instructblip": QUERIES,
    "instructblipvideo": QUERIES,
    "janus": {"vq_config.base_channels": 32, "vq_config.latent_channels": 32},
    "kosmos-2": {**PICTURE, "latent_query_num": 4},
    "longcat_flash": {"num_key_value_heads": 4, "qk_head_dim": 32, "zero_expert_num": 2},
    "mistral4": {"num_key_value_heads": 4, "head_dim": 32},
    "molmo2": {"adapter_config.vision_feature_layer": [1, 0]},
    "nemotron_h": MAMBA,
    "nemotron_h_omni": {f"text_config.{name}": size for name, size in MAMBA.items()},
    "pi0": {"vlm_config.vision_config.image_size": 28},
    "qwen4_exp": {
        "text_config.indexer_n_heads": 2,
        "text_config.indexer_kv_heads": 1,
        "text_config.indexer_head_dim": 16,
        "text_config.indexer_budget": 16,
        "text_config.indexer_compress_ratio": 4,
    },
    "step3p7": {"text_config.sliding_window": 16},
}
"""Family → paths in its configuration, with dots, and values there."""


def _with_queries(*shape: int, tokens: int) -> Samples:
    """Texts that begin with the places of a Q-Former's outputs."""
    samples = with_pictures(texts(first_id=70), *shape)
    for sample in samples:
        sample["input_ids"][0, :tokens] = 4
        sample["qformer_input_ids"] = torch.tensor([[11, 12, 13]])
    return samples


def _kosmos() -> Samples:
    samples = with_pictures(texts(first_id=70), 1, 3, 28, 28)
    for sample in samples:
        sample["image_embeds_position_mask"] = torch.zeros_like(sample["input_ids"])
        sample["image_embeds_position_mask"][0, 1:5] = 1
    return samples


def _two_kinds() -> Samples:
    """Texts in which some tokens stand for a picture: they have experts of their own."""
    samples = texts(first_id=70)
    for sample in samples:
        sample["moe_mm_token_type_ids"] = torch.zeros_like(sample["input_ids"])
        sample["moe_mm_token_type_ids"][0, 2:14] = 1
    return samples


def _proteins() -> Samples:
    samples = texts(first_id=70)
    for sample in samples:
        sample["protein_input_ids"] = torch.randint(5, 30, (1, 24))
        sample["protein_attention_mask"] = torch.ones(1, 24, dtype=torch.long)
    return samples


def _robot() -> Samples:
    """What a robot sees and is told, and the noise that becomes its actions."""
    samples = with_pictures(texts(first_id=70), 1, 1, 3, 28, 28)
    for sample in samples:
        sample |= {"state": torch.randn(1, 32), "noise": torch.randn(1, 50, 32), "timestep": torch.tensor([0.5])}
        sample["pixel_attention_mask"] = torch.ones(1, 1, dtype=torch.bool)
    return samples


SAMPLES: dict[str, Callable[[], Samples]] = {
    "blip": lambda: with_pictures(texts(first_id=70), 1, 3, 28, 28),
    "ernie4_5_vl_moe": _two_kinds,
    "evolla": _proteins,
    "instructblip": lambda: _with_queries(1, 3, 28, 28, tokens=4),
    "instructblipvideo": lambda: _with_queries(1, 2, 3, 28, 28, tokens=8),
    "kosmos-2": _kosmos,
    "pi0": _robot,
}
"""Family → samples, where text is not enough."""
