"""Folders that the engine serves: the trained tiny VLM, in full precision and quantized in every way."""

import shutil
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

EXAMPLES = Path(__file__).parents[3] / "examples"
WITH_EXPERTS = EXAMPLES / "tiny-vlm-moe" / "model"
sys.path.insert(0, str(EXAMPLES / "tiny-vlm"))

WAYS: dict[str, dict[str, Any]] = {
    "w4": {"bits": 4},
    "w3": {"bits": 3, "sym": True},
    "w2": {"bits": 2},
    "w8": {"bits": 8, "group_size": -1},
    "mixed": {"bits": 4, "overrides": {"*.k_proj": 3, "*.v_proj": 8, "*.up_proj": 5, "*.layers.2.*": 6}},
    "w4a8": {
        "bits": 4,
        "activation_bits": 8,
        "recipe": {"name": "rtn", "rotation": "all"},
    },
    "whole": {
        "bits": 4,
        "vision_bits": 4,
        "lm_head_bits": 8,
        "embedding_bits": 3,
        "overrides": {"*.vision_tower.*.v_proj": 8, "*.self_attn.q_proj": 2},
    },
}
_NOT_ROTATED = {"activation_bits": 8, "recipe": {"name": "rtn", "rotation": "none"}}
EXPORTED: dict[str, dict[str, Any]] = {
    "mixed": {"bits": 4, "overrides": {"*.down_proj": 3, "*.o_proj": 8, "*.layers.2.*": 2}},
    "w4": {"bits": 4},
    "w4-symmetric": {"bits": 4, "sym": True},
    "w3a8": {"bits": 3, **_NOT_ROTATED},
    "w4a8-symmetric": {"bits": 4, "sym": True, "group_size": 32, **_NOT_ROTATED},
}
"""For compressed-tensors: parts of one fused layer have one width."""
EXPERTS: dict[str, dict[str, Any]] = {
    "w4": {"bits": 4},
    "mixed": {
        "bits": 4,
        "overrides": {"*.experts.0-2,5.down_proj": 3, "*.experts.*.up_proj": 8, "*.experts.6.gate_proj": 2},
    },
    "sym-w4a8": {"bits": 4, "sym": True, **_NOT_ROTATED},
}
"""For the trained tiny VLM with experts."""
DEEPSEEK: dict[str, Any] = {
    "bits": 4,
    "group_size": 32,
    "lm_head_bits": 8,
    "overrides": {"*.experts.0-2.down_proj": 3, "*.kv_b_proj": 8, "*.kv_a_proj_with_mqa": 3, "*.up_proj": 5},
}
"""For a tiny DeepSeek-V3."""
MIXTRAL: dict[str, Any] = {
    "bits": 4,
    "group_size": 32,
    "lm_head_bits": 8,
    "embedding_bits": 3,
    "overrides": {"*.experts.0-1.down_proj": 3, "*.k_proj": 2},
}
"""For a tiny Mixtral, to whose embeddings vLLM gives no configuration, and whose experts it calls otherwise."""
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"bits": 4, "group_size": 32, "vision_bits": 4, "overrides": {"*.k_proj": 3, "*.up_proj": 8}},
    "internvl": {"bits": 3, "sym": True, "group_size": 32, "vision_bits": 8},
}
"""A tower that is fused in the file, and a projector that vLLM's model makes as `nn.Linear`."""


def make_family(name: str, folder: Path) -> Path:
    """Makes a tiny model of random weights, with heads of 32 channels: vLLM's CPU engine has none of 16."""
    import torch

    from tests import families
    from tests.tiny_models.weights import randomise

    cls, config, processor = families.FAMILIES[name]()
    config.text_config.num_attention_heads, config.text_config.num_key_value_heads = 2, 1
    if "mrope_section" in (config.text_config.rope_parameters or {}):
        config.text_config.rope_parameters["mrope_section"] = [4, 6, 6]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(config).to(torch.bfloat16)
    randomise(model, 0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_deepseek(folder: Path, tokenizer: Path) -> Path:
    """Makes a tiny DeepSeek-V3 of random weights. vLLM's CPU kernel for latent attention has one width of its cache."""
    from transformers import DeepseekV3Config

    return _make_text(
        folder, tokenizer, DeepseekV3Config, intermediate_size=256, moe_intermediate_size=64, num_key_value_heads=4,
        n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1, n_group=2, topk_group=1, first_k_dense_replace=1,
        q_lora_rank=96, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=32, v_head_dim=32,
        routed_scaling_factor=2.0, topk_method="noaux_tc", scoring_func="sigmoid",
    )  # fmt: skip


def make_mixtral(folder: Path, tokenizer: Path) -> Path:
    """Makes a tiny Mixtral of random weights."""
    from transformers import MixtralConfig

    return _make_text(
        folder, tokenizer, MixtralConfig, intermediate_size=64, num_local_experts=4, num_key_value_heads=2
    )


def _make_text(folder: Path, tokenizer: Path, config_class: Any, **sizes: Any) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.tiny_models.weights import randomise

    words = AutoTokenizer.from_pretrained(tokenizer)
    config = config_class(
        vocab_size=len(words), hidden_size=128, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=512,
        tie_word_embeddings=False, **sizes,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    randomise(model, 0)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def make_quantized(source: Path, folder: Path, **settings: Any) -> Path:
    """Quantizes `source` in `folder`, as a user does."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from transformers_qaig import QAIGConfig

    config = QAIGConfig(**{"group_size": 64, "recipe": "rtn", "num_samples": 4, **settings})
    model = AutoModelForImageTextToText.from_pretrained(source, quantization_config=config)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(source).save_pretrained(folder)
    return folder


def make_full(source: Path, folder: Path) -> Path:
    """Copies a LLaVA with the names that published files have and vLLM reads: with one more level in the tower."""
    shutil.copytree(source, folder)
    old, new = "vision_tower.", "vision_tower.vision_model."
    tensors = load_file(source / "model.safetensors")
    renamed = {name.replace(old, new) if new not in name else name: tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
