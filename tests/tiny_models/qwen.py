"""Qwen-VL."""

from typing import Any

import transformers as hf

from tests.tiny_models.parts import MROPE, QWEN_VISION, TEXT, Family, processor_of, tokenizer_of


def _qwen_tokenizer() -> tuple[hf.PreTrainedTokenizerFast, dict[str, int]]:
    """The tokenizer of the Qwen-VL families, and the token ids their configs take."""
    named = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
    }
    image, video = (f"<|vision_start|>{named[kind]}<|vision_end|>" for kind in ("image_token", "video_token"))
    t = tokenizer_of(named, image, ("<|im_start|>", "<|im_end|>"), video)
    configured = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return t, dict(zip(configured, t.convert_tokens_to_ids(list(named.values()))))


def _frames(patch: int) -> dict[str, Any]:
    """Small frames."""
    return {"size": {"shortest_edge": 2 * (2 * patch) ** 2, "longest_edge": 32 * (2 * patch) ** 2}}


def qwen2_vl() -> Family:
    t, ids = _qwen_tokenizer()
    image = hf.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=84 * 84)
    processor = processor_of(hf.Qwen2VLProcessor, t, image, video_processor=hf.Qwen2VLVideoProcessor(**_frames(14)))
    config = hf.Qwen2VLConfig(
        text_config={"vocab_size": len(t), "rope_parameters": MROPE, **TEXT},
        vision_config={
            "depth": 2,
            "patch_size": 14,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
        },
        **ids,
    )
    return hf.Qwen2VLForConditionalGeneration, config, processor


def qwen2_5_vl() -> Family:
    t, ids = _qwen_tokenizer()
    image = hf.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=84 * 84)
    processor = processor_of(hf.Qwen2_5_VLProcessor, t, image, video_processor=hf.Qwen2VLVideoProcessor(**_frames(14)))
    config = hf.Qwen2_5_VLConfig(
        text_config={"vocab_size": len(t), "rope_parameters": MROPE, **TEXT},
        vision_config={"depth": 2, "patch_size": 14, "fullatt_block_indexes": [1], "window_size": 56, **QWEN_VISION},
        **ids,
    )
    return hf.Qwen2_5_VLForConditionalGeneration, config, processor


def _qwen3_processor(tokenizer: hf.PreTrainedTokenizerFast) -> Any:
    image = hf.Qwen2VLImageProcessor(
        patch_size=16, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
    )
    return processor_of(hf.Qwen3VLProcessor, tokenizer, image, video_processor=hf.Qwen3VLVideoProcessor(**_frames(16)))


def qwen3_vl() -> Family:
    t, ids = _qwen_tokenizer()
    config = hf.Qwen3VLConfig(
        text_config=TEXT | {"vocab_size": len(t), "head_dim": 16, "rope_parameters": MROPE, "num_hidden_layers": 5},
        vision_config={
            "depth": 3,
            "patch_size": 16,
            "deepstack_visual_indexes": [0, 1, 2],
            "num_position_embeddings": 16,
            **QWEN_VISION,
        },
        **ids,
    )
    return hf.Qwen3VLForConditionalGeneration, config, _qwen3_processor(t)


def qwen3_vl_moe() -> Family:
    t, ids = _qwen_tokenizer()
    config = hf.Qwen3VLMoeConfig(
        text_config={
            "vocab_size": len(t),
            "head_dim": 16,
            "rope_parameters": MROPE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "decoder_sparse_step": 1,
            **TEXT,
        },
        vision_config={
            "depth": 2,
            "patch_size": 16,
            "deepstack_visual_indexes": [0, 1],
            "num_position_embeddings": 16,
            **QWEN_VISION,
        },
        **ids,
    )
    return hf.Qwen3VLMoeForConditionalGeneration, config, _qwen3_processor(t)


def qwen3_5() -> Family:
    t, ids = _qwen_tokenizer()
    text = {
        "vocab_size": len(t),
        "num_hidden_layers": 4,
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "rope_parameters": MROPE | {"partial_rotary_factor": 1.0, "mrope_interleaved": True},
    }
    vision = {"depth": 2, "patch_size": 16, "num_position_embeddings": 16, **QWEN_VISION}
    config = hf.Qwen3_5Config(text_config=TEXT | text, vision_config=vision, **ids)
    return hf.Qwen3_5ForConditionalGeneration, config, _qwen3_processor(t)
