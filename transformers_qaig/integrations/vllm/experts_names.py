"""The names under which vLLM finds the tensors of a stack of experts.

Some models, such as DeepSeek-V2's, load experts by code of their own. It looks each name up among the parameters of
the model, and takes any name with `gate_proj` or `up_proj` for a shard of something else. So tensors get names without.
"""

from __future__ import annotations

import re

GUARDED = ("w13_weight", "w2_weight")
"""Where such code puts the weight of a single expert. A packed file has none but the guard."""
PATTERN = r"(^|\.)experts\.(gate|up|down)_proj_(packed|scale|zero_point|shape)$"
REPLACEMENT = r"\1experts.routed_experts.\2_\3"
"""From the file's name of a tensor to the one that vLLM's layer has."""


def engine_name(name: str) -> str:
    """Returns what the layer calls a tensor of its stack."""
    return name.replace("_proj_", "_", 1)


def file_name(name: str) -> str:
    """Returns what the file calls a tensor; other names stay."""
    short = name.removeprefix("routed_experts.")
    return re.sub("^(gate|up|down)_(packed|scale|zero_point|shape)$", r"\1_proj_\2", short)
