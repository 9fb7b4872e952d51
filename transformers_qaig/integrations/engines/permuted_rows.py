"""Whether an engine changes a linear's `weight` as it loads it, and what that means for packed ones.

Of Llama 4 vLLM permutes `weight`, `weight_packed` and `weight_scale`. Zero points, and all of AWQ and GPTQ,
stay as they are. SGLang permutes `weight` alone. Plugins and exports both ask.
"""

from __future__ import annotations

PERMUTED = ("q_proj", "k_proj", "qkv_proj")


def permutes_rows(model_type: str, path: str) -> bool:
    """Returns whether vLLM permutes the rows of a linear; in vLLM 0.32 those of Llama 4, except in its tower.

    Args:
        model_type: of the language model's config.
        path: of the linear, in Transformers or in vLLM.
    """
    parts = path.split(".")
    return model_type.startswith("llama4") and parts[-1] in PERMUTED and "vision_model" not in parts


def reshapes_packed(model_type: str, path: str) -> bool:
    """Returns whether vLLM reshapes a linear's tensors by heads, which packed ones do not survive: in Bloom.

    It reshapes every tensor of the fused q, k and v as if it had one row per output channel.

    Args:
        model_type: of the language model's config.
        path: of the linear, in Transformers or in vLLM.
    """
    return model_type == "bloom" and path.split(".")[-1] == "query_key_value"


_CHANGED_BY_SGLANG = {
    "llama4": PERMUTED, "muse_spark": PERMUTED, "muse_spark_omni": PERMUTED, "persimmon": ("query_key_value",)
}  # fmt: skip


def is_changed_by_sglang(model_type: str, path: str) -> bool:
    """Returns whether SGLang 0.5.23 needs a linear's `weight` itself: to permute its rows, or for latent attention.

    Args:
        model_type: of the model's config. `llama4_text`, which has no tower, is loaded as it is.
        path: of the linear, in Transformers or in SGLang.
    """
    parts = path.split(".")
    if parts[-1] == "kv_b_proj":
        return True
    is_tower = any("vision" in part for part in parts)
    return not is_tower and parts[-1] in _CHANGED_BY_SGLANG.get(model_type, ())
