"""What is quantized on the pretended accelerator: the family of a tiny model, and the settings."""

from typing import Any

EVERYTHING = {"vision_bits": 4, "lm_head_bits": 4, "embedding_bits": 4}
BEST = {"name": "best", "steps": 4}
BUDGET = {"bits": 4.0, "candidates": (2, 3, 4)}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("llava", {"bits": 3}),
    "bfloat16": ("llava", {"bits": 3, "dtype": "bfloat16"}),
    "fast": ("llava", {"bits": 3, "recipe": "fast"}),
    "gptq": ("llava", {"bits": 3, "recipe": {"name": "gptq", "validate": True}}),
    "paper": ("llava", {"bits": 3, "recipe": "paper"}),
    "best": ("llava", {"bits": 2, "recipe": BEST}),
    "8-bit inputs": ("llava", {"bits": 4, "activation_bits": 8}),
    "rotated": ("llava", {"bits": 3, "recipe": {"rotation": "all"}}),
    "whole file": ("llava", {"bits": 4, **EVERYTHING, "recipe": {"name": "default", "end_to_end": True, "steps": 4}}),
    "fisher": ("llava", {"budget": {**BUDGET, "cost": "fisher"}}),
    "fisher_rtn": ("llava", {"budget": BUDGET}),
    "qwen2.5-vl": ("qwen2_5_vl", {"bits": 3, **EVERYTHING}),
    "gemma3": ("gemma3", {"bits": 3, **EVERYTHING}),
    "mllama": ("mllama", {"bits": 3}),
    "experts": ("qwen3_vl_moe", {"bits": 3}),
    "learned experts": ("qwen3_vl_moe", {"bits": 3, "recipe": BEST, "calibration": {"expert_memory": "400KB"}}),
    "experts with token weights": ("qwen3_vl_moe", {"bits": 3, "recipe": {"token_weights": "qig"}}),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "authors": ("llava", {"bits": 3, "recipe": "authors"}),
    "mbq": ("llava", {"bits": 3, "recipe": "mbq"}),
    "gradient": ("llava", {"bits": 3, "recipe": {"token_weights": "gradient"}}),
    "integrated gradients": ("llava", {"budget": {**BUDGET, "cost": "integrated_gradients"}}),
    "one at a time": ("llava", {"budget": {**BUDGET, "cost": "one_at_a_time"}}),
    "output error": ("llava", {"budget": {**BUDGET, "cost": "output_error"}}),
    "qwen3-vl": ("qwen3_vl", {"bits": 3, **EVERYTHING}),
    "all experts": ("qwen3_vl_moe", {"bits": 3, "calibration": {"moe_calibrate_all_experts": True}}),
}
"""Run by `make exhaustive`."""
