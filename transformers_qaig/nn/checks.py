"""Checks the tensors of a loaded packed module, before its layout changes."""

import torch
from torch import Tensor

from ..formats.packing import SCALE_DTYPES, packed_shapes
from .packed_module import PackedModule

LARGEST_WEIGHT = 2.0**60
"""The largest magnitude of a weight: sums of products of larger numbers overflow float32."""


def check_packed(module: PackedModule, name: str, *, negative_scales: bool = True) -> None:
    """Checks a loaded layer before its layout changes: the dtypes, shapes and content of its tensors.

    Tensors on the meta device (offloaded) have no content to check; their shapes and dtypes are checked.

    Args:
        module: a linear layer or embeddings.
        name: its name in the model, for the message.
        negative_scales: whether scales may be negative. Kernels accept them, but no quantizer here makes them.

    Raises:
        ValueError: naming the first tensor that is missing, misshapen, wrongly typed, not finite, or inconsistent.
    """
    shapes = packed_shapes(module.out_features, module.in_features, module.bits, module.group_size, module.sym)
    for key, (shape, dtype) in shapes.items():
        tensor = getattr(module, key)
        if tensor is None:
            raise ValueError(f"{name}.{key} is missing")
        if tensor.dtype not in ((dtype,) if dtype else SCALE_DTYPES):
            raise ValueError(
                f"{name}.{key} has dtype {tensor.dtype}, expected {dtype or 'float16, bfloat16 or float32'}"
            )
        if tensor.shape != shape:
            raise ValueError(f"{name}.{key} has shape {tuple(tensor.shape)}, expected {shape}")
    if module.sym and module.weight_zero_point is not None:
        raise ValueError(f"{name}.weight_zero_point is there, but the layer is symmetric and has none")
    check_finite(module.weight_scale, f"{name}.weight_scale", LARGEST_WEIGHT / 2**module.bits, negative=negative_scales)
    expected = [module.out_features, module.in_features]
    if module.weight_shape.device.type != "meta" and module.weight_shape.tolist() != expected:
        raise ValueError(f"{name}.weight_shape says {module.weight_shape.tolist()}, expected {expected}")


def check_finite(tensor: Tensor, name: str, largest: float = LARGEST_WEIGHT, *, negative: bool = True) -> None:
    """Checks the values of a floating tensor; one on the meta device has none.

    Args:
        tensor: of any dtype.
        name: its name in the model, for the message.
        largest: the largest magnitude that it may hold.
        negative: whether it may hold negative values.

    Raises:
        ValueError: if it holds a value that is not finite, beyond `largest`, or negative where it may not be.
    """
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return
    low, high = tensor.detach().aminmax()  # makes no copy, and is NaN if one value is
    found = float(torch.maximum(low.abs(), high.abs()))
    if not found <= largest:
        raise ValueError(
            f"{name} has values that are not finite, or absurdly large ({found:.3g}): download the checkpoint or save "
            "it again"
        )
    if not negative and low < 0:
        raise ValueError(
            f"{name} has negative values ({float(low):.3g}), and scales are positive: download the checkpoint or save "
            "it again"
        )
