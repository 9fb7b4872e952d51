"""Checks the tensors of loaded experts, before their layout changes."""

import torch

from ..formats.packing import SCALE_DTYPES
from .checks import LARGEST_WEIGHT, check_finite
from .experts import QAIGExperts


def check_packed_experts(module: QAIGExperts, name: str, *, negative_scales: bool = True) -> None:
    """Checks loaded experts before their layout changes: the dtypes, shapes and content of their tensors.

    Args:
        module: in the checkpoint layout.
        name: its name in the model, for the message.
        negative_scales: whether scales may be negative.

    Raises:
        ValueError: naming the first tensor that is missing, misshapen, wrongly typed or not finite.
    """
    for key, (shape, dtype) in packed_expert_shapes(module).items():
        tensor = module.get_parameter(key)
        if tensor.dtype not in ((dtype,) if dtype else SCALE_DTYPES):
            raise ValueError(f"{name}.{key} has dtype {tensor.dtype}, expected {dtype or 'a 16- or 32-bit float'}")
        if tensor.shape != shape:
            raise ValueError(f"{name}.{key} has shape {tuple(tensor.shape)}, expected {shape}")
        if dtype is None:
            bits = max(module.schemes[key.removesuffix("_scale")].bits)
            check_finite(tensor, f"{name}.{key}", LARGEST_WEIGHT / 2**bits, negative=negative_scales)


def packed_expert_shapes(module: QAIGExperts) -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
    """Returns name → shape and dtype of every packed tensor in the checkpoint layout; None for the dtype of scales."""
    found: dict[str, tuple[tuple[int, ...], torch.dtype | None]] = {}
    for projection, scheme in module.schemes.items():
        shapes = scheme.shapes(module.stack, projection)
        found[f"{projection}_packed"] = (shapes.words,), torch.int32
        found[f"{projection}_scale"] = shapes.scale, None
        if not scheme.sym:
            found[f"{projection}_zero_point"] = shapes.zero_shape, torch.int32
    return found
