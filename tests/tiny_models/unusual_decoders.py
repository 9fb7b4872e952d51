"""Tiny decoders with several lists of blocks, with inputs of other ranks, or with embeddings read otherwise."""

from typing import Any

import torch
import transformers as hf

from tests.tiny_models.unusual_parts import GEMMA, OPT, VISION, VOCABULARY, Samples, blip_2, made, texts, with_pictures


def idefics() -> tuple[Any, Samples]:
    """Cross attention layers in a list of their own, and the tower inside the decoder."""
    config = hf.IdeficsConfig(
        vocab_size=VOCABULARY,
        additional_vocab_size=4,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        cross_layer_interval=2,
        use_resampler=True,
        max_position_embeddings=256,
        vision_config={"embed_dim": 32, **{k: v for k, v in VISION.items() if k != "hidden_size"}},
        perceiver_config={
            "resampler_n_latents": 4,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
        },
    )
    samples = with_pictures(texts(), 1, 1, 3, 28, 28)
    for sample in samples:
        sample["image_attention_mask"] = torch.ones(1, sample["input_ids"].shape[1], 1, dtype=torch.long)
    return made(hf.IdeficsForVisionText2Text, config), samples


def blip_2_opt() -> tuple[Any, Samples]:
    """Its MLPs read [B * T, C]."""
    return blip_2(hf.OPTConfig(**OPT))


def gemma_3n() -> tuple[Any, Samples]:
    """Its blocks read four streams, [4, B, T, C]."""
    config = hf.Gemma3nTextConfig(
        **GEMMA | {"intermediate_size": [96] * 2},
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=32,
        laurel_rank=32,
        num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.0] * 2,
    )
    return made(hf.Gemma3nForCausalLM, config), texts()


def deepseek_v3() -> tuple[Any, Samples]:
    """Its `kv_b_proj` reads [B, 1, T, C]."""
    config = hf.DeepseekV3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        first_k_dense_replace=2,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=16,
        max_position_embeddings=256,
    )
    return made(hf.DeepseekV3ForCausalLM, config), texts()


def gemma_4() -> tuple[Any, Samples]:
    """It reads a row of its embeddings' weight, for the inputs of each layer."""
    text = GEMMA | {
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 32,
        "num_kv_shared_layers": 0,
        "global_head_dim": 16,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "patch_size": 16,
    }
    config = hf.Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=None,
        image_token_id=5,
        video_token_id=6,
        audio_token_id=7,
    )
    return made(hf.Gemma4ForConditionalGeneration, config), texts()
