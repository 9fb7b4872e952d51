"""Sizes, weights and samples of tiny models that need no processor."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from tests.tiny_models.weights import randomise

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
