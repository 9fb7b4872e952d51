"""Tiny models whose language model is an encoder and a decoder, or whose decoder reads the picture alone."""

from typing import Any

import torch
import transformers as hf

from tests.tiny_models.unusual_parts import (
    GEMMA,
    T5,
    VISION,
    VOCABULARY,
    Samples,
    blip_2,
    captions,
    made,
    texts,
    with_pictures,
)


def blip_2_t5() -> tuple[Any, Samples]:
    """Its language model is an encoder and a decoder."""
    return blip_2(hf.T5Config(**T5))


def vision_encoder_decoder() -> tuple[Any, Samples]:
    """No text is read but the answer."""
    decoder = hf.TrOCRConfig(
        vocab_size=VOCABULARY,
        d_model=64,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=96,
        cross_attention_hidden_size=64,
        max_position_embeddings=256,
    )
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(hf.ViTConfig(**VISION), decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return made(hf.VisionEncoderDecoderModel, config), captions(1, 3, 28, 28)


def pix2struct() -> tuple[Any, Samples]:
    """Its attention mask is that of patches."""
    sizes = {"hidden_size": 64, "d_ff": 96, "d_kv": 16}
    text = {"vocab_size": VOCABULARY, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0}
    vision = {"patch_embed_hidden_size": 768, "num_hidden_layers": 2, "num_attention_heads": 4, "seq_len": 16}
    config = hf.Pix2StructConfig(text_config=sizes | text, vision_config=sizes | vision)
    generator, samples = torch.Generator().manual_seed(1), []
    for sample in texts():
        patches = torch.randn(1, 12, 770, generator=generator)
        patches[..., 0], patches[..., 1] = torch.arange(12) // 4 + 1, torch.arange(12) % 4 + 1
        samples.append(
            {"flattened_patches": patches, "attention_mask": torch.ones(1, 12), "labels": sample["input_ids"]}
        )
    return made(hf.Pix2StructForConditionalGeneration, config), samples


def formula_net() -> tuple[Any, Samples]:
    """Transformers does not find its input embeddings."""
    text = {
        "vocab_size": VOCABULARY,
        "d_model": 64,
        "hidden_size": 64,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 96,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "decoder_start_token_id": 2,
    }
    vision = {
        "hidden_size": 32,
        "image_size": 64,
        "mlp_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "output_channels": 32,
        "window_size": 2,
        "global_attn_indexes": [1],
        "patch_size": 16,
        "post_conv_in_channels": 32,
        "post_conv_mid_channels": 64,
        "post_conv_out_channels": 64,
        "decoder_hidden_size": 64,
    }
    config = hf.PPFormulaNetConfig(text_config=text, vision_config=vision)
    return made(hf.PPFormulaNetForConditionalGeneration, config), captions(1, 3, 64, 64)


def udop() -> tuple[Any, Samples]:
    """The text encoder stands beside the decoder, and reads text and patches as one sequence."""
    config = hf.UdopConfig(**T5, image_size=32, patch_size=16, max_2d_position_embeddings=256)
    samples = with_pictures(texts(), 1, 3, 32, 32)
    for sample in samples:
        boxes = torch.rand(1, sample["input_ids"].shape[1], 4, generator=torch.Generator().manual_seed(2))
        sample |= {"bbox": 0.9 * boxes.sort(-1).values, "labels": sample["input_ids"][:, :12]}
    return made(hf.UdopForConditionalGeneration, config), samples


def florence_2() -> tuple[Any, Samples]:
    """Four names of one table; a tower of windows."""
    text = {
        "model_type": "bart",
        "vocab_size": VOCABULARY,
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 96,
        "decoder_ffn_dim": 96,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    }
    vision = {
        "depths": [1, 1],
        "embed_dim": [32, 64],
        "num_heads": [2, 4],
        "num_groups": [2, 4],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "window_size": 4,
        "projection_dim": 64,
    }
    config = hf.Florence2Config(text_config=text, vision_config=vision, image_token_id=4)
    samples = with_pictures(texts(least=40, most=60), 1, 3, 32, 32)
    for sample in samples:
        sample["labels"] = sample["input_ids"][:, 17:].clone()
        sample["input_ids"][0, :17] = 4
    return made(hf.Florence2ForConditionalGeneration, config), samples


def t5_gemma_2() -> tuple[Any, Samples]:
    """The tower is inside the text encoder, which Transformers names when asked for the tower."""
    text = GEMMA | {"query_pre_attn_scalar": 16, "bos_token_id": 1, "eos_token_id": 2}
    encoder = {
        "text_config": text,
        "vision_config": VISION | {"image_size": 56, "vision_use_head": False},
        "mm_tokens_per_image": 4,
        "boi_token_index": 4,
        "eoi_token_index": 4,
        "image_token_index": 5,
        "vocab_size": VOCABULARY,
    }
    config = hf.T5Gemma2Config(encoder=encoder, decoder=text, image_token_index=5)
    samples = with_pictures(texts(), 1, 3, 56, 56)
    for sample in samples:
        sample["labels"] = sample["input_ids"][:, 6:].clone()
        sample["input_ids"][0, 2:6] = 5
    return made(hf.T5Gemma2ForConditionalGeneration, config), samples
