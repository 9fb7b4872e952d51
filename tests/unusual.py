"""Tiny models whose parts lie elsewhere than in most: encoder-decoders, several lists of blocks, inputs of other ranks.

Each function returns a model with random weights and samples as a processor would give them; nothing needs a processor.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from tests.families import randomise

Samples = list[dict[str, Tensor]]
VOCABULARY = 300
VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
QFORMER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "encoder_hidden_size": 64,
    "cross_attention_frequency": 1,
}
OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 64,
    "max_position_embeddings": 256,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "d_ff": 96,
    "d_kv": 16,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
GEMMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}


def texts(count: int = 8, *, least: int = 20, most: int = 50, first_id: int = 10) -> Samples:
    """Random ids of different lengths, without padding."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        length = int(torch.randint(least, most, (1,), generator=generator))
        ids = torch.randint(first_id, VOCABULARY, (1, length), generator=generator)
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return found


def with_pictures(samples: Sequence[dict[str, Tensor]], *shape: int) -> Samples:
    generator = torch.Generator().manual_seed(1)
    return [{**sample, "pixel_values": torch.randn(shape, generator=generator)} for sample in samples]


def captions(*shape: int) -> Samples:
    """Pictures with the answer as labels, and no other text."""
    return with_pictures([{"labels": sample["input_ids"]} for sample in texts()], *shape)


def made(cls: Any, config: hf.PretrainedConfig) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(config).eval()
    randomise(model, 0)
    return model


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


def blip_2(language_model: hf.PretrainedConfig) -> tuple[Any, Samples]:
    config = hf.Blip2Config(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config=language_model,
        num_query_tokens=4,
        image_token_index=4,
    )
    samples = with_pictures(texts(), 1, 3, 28, 28)
    for sample in samples:
        sample["input_ids"][0, :4] = 4
    return made(hf.Blip2ForConditionalGeneration, config), samples


def blip_2_opt() -> tuple[Any, Samples]:
    """Its MLPs read [B * T, C]."""
    return blip_2(hf.OPTConfig(**OPT))


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


ENCODER_DECODERS: dict[str, Callable[[], tuple[Any, Samples]]] = {
    "blip_2_t5": blip_2_t5,
    "vision_encoder_decoder": vision_encoder_decoder,
    "pix2struct": pix2struct,
    "formula_net": formula_net,
    "udop": udop,
    "florence_2": florence_2,
    "t5_gemma_2": t5_gemma_2,
}
UNUSUAL = ENCODER_DECODERS | {
    "idefics": idefics,
    "blip_2_opt": blip_2_opt,
    "gemma_3n": gemma_3n,
    "deepseek_v3": deepseek_v3,
    "gemma_4": gemma_4,
}
