"""What `accuracy.py` checks of a method's weights, and the weights of a model as linears, experts included."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accuracy_peers.common import BLOCKS, is_quantized
from torch import Tensor

GATE_UP, DOWN = ".experts.gate_up_proj", ".experts.down_proj"
"""How the names of stacked experts end: `[E, 2 I, H]` and `[E, H, I]`."""
EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def unstacked(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state dict in which each expert has linears: `….experts.3.up_proj.weight`."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        stack = name.rpartition(".")[0]
        if name.endswith(GATE_UP):
            for expert, (gate, up) in enumerate(each.chunk(2) for each in tensor):
                found |= {f"{stack}.{expert}.gate_proj.weight": gate, f"{stack}.{expert}.up_proj.weight": up}
        elif name.endswith(DOWN):
            found |= {f"{stack}.{expert}.down_proj.weight": weight for expert, weight in enumerate(tensor)}
        else:
            found[name] = tensor
    return found


def stacked(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undoes `unstacked`."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[tuple[int, str], Tensor]] = {}
    for name, tensor in weights.items():
        if (match := EXPERT.fullmatch(name)) is None:
            found[name] = tensor
        else:
            parts.setdefault(match[1], {})[int(match[2]), match[3]] = tensor
    for stack, experts in parts.items():
        numbers = range(len(experts) // 3)
        gate_up = [torch.cat([experts[e, "gate"], experts[e, "up"]]) for e in numbers]
        found[f"{stack}.gate_up_proj"] = torch.stack(gate_up)
        found[f"{stack}.down_proj"] = torch.stack([experts[e, "down"] for e in numbers])
    return found


def check_weights(
    originals: Mapping[str, Tensor], weights: Mapping[str, Tensor], linears: Sequence[str], group_size: int
) -> dict[str, Any]:
    """
    What a method did to the weights.

    Args:
        originals: the model's state dict, `unstacked`.
        weights: the method's, dequantized.
        linears: paths of what it says it quantized.
        group_size: -1 is one group per row.

    Returns:
        `levels`, the most values in one group; `linears`, their number; `changed`, the paths of other weights inside
        the blocks that it changed.

    Raises:
        RuntimeError: something outside the language model's blocks changed or is not there in float32, a linear inside
            them was left out, or one is as before.
    """
    expected = {name for name, tensor in originals.items() if is_quantized(name) and tensor.dim() == 2}
    if (found := {f"{path}.weight" for path in linears}) != expected:
        raise RuntimeError(f"quantized {len(found)} linears, not the blocks' {len(expected)}: {found ^ expected}")
    levels, changed = 0, []
    for name, original in originals.items():
        if name not in weights:
            if name in expected or (not BLOCKS.search(name) and original.dtype == torch.float32):
                raise RuntimeError(f"{name} is missing: quantized, or of another name or dtype.")
            continue
        same = torch.equal(original, weights[name])
        if not BLOCKS.search(name):
            if not same:
                raise RuntimeError(f"{name} is outside the language model's blocks, and changed.")
        elif name not in expected:
            changed += [] if same else [name]
        elif same:
            raise RuntimeError(f"{name} did not change.")
        else:
            values = weights[name].reshape(-1, group_size if group_size > 0 else original.shape[1]).sort(dim=1).values
            levels = max(levels, 1 + int((values.diff(dim=1) != 0).sum(dim=1).max()))
    return {"levels": levels, "linears": len(expected), "changed": changed}
