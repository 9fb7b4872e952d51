"""Whether vLLM permutes a linear's rows, or reshapes its tensors, as it loads them. Plugin and exports both ask.

Of Llama 4 it permutes `weight`, `weight_packed` and `weight_scale`. Zero points, and all of AWQ and GPTQ,
stay as they are.
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
