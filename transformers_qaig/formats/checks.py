"""Checks the arguments of every operator in Python: packed tensors come from files that anybody may have written.

The compiled kernels check the same (`csrc/ops/checks.h`). Errors name the argument.
"""

from typing import Any

import torch
from torch import Tensor

from . import cuda_layout
from .hadamard import Rotation
from .packing import CUDA_LAYOUT, KERNEL_BITS, SCALE_DTYPES, packed_shapes
from .reference import Weight

ACTIVATION_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST_FEATURES = 1 << 24  # so that kernels can count in 32 bits, padding included


def check_activation_bits(activation_bits: int) -> None:
    """Raises `NotImplementedError` unless `activation_bits` is 8 or 16."""
    if activation_bits not in (8, 16):
        raise NotImplementedError(f"activation_bits={activation_bits} has no kernel here: use 16 or 8")


def check_lists(packed: list[Tensor], *others: list[Any]) -> None:
    """Checks that every list has one entry per layer.

    Args:
        packed: packed words, one tensor a layer.
        others: the other arguments, as lists.

    Raises:
        ValueError: a list has another length than `packed`.
    """
    if any(len(other) != len(packed) for other in others):
        raise ValueError(
            "packed, scale, zero, bias, rotation_block, rotation_seed, out_features, bits and group_size must have one "
            "entry per layer"
        )


def check_input(x: Tensor, in_features: int) -> None:
    """Checks the input of a layer.

    Operators read the width off x, and the words of a packed row may end anywhere. So a wrong width must be found here.

    Args:
        x: `[..., in_features]`, floating.
        in_features: of the layer.

    Raises:
        ValueError: x is no tensor, nested, or not `[..., in_features]`.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"the layer's input must be a tensor, got {type(x).__name__}")
    if x.is_nested:
        check_dense("x", x)
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ValueError(
            f"the layer's input must have shape [..., {in_features}], its in_features, got {tuple(x.shape)}"
        )


def check_dispatchable(name: str, x: Tensor, **others: Tensor | None) -> None:
    """Checks that torch dispatches a call with these tensors to the kernels of x's device.

    Args:
        name: of x, as in the operator.
        x: the input.
        others: the operator's other tensors, by their names; None is allowed.

    Raises:
        ValueError: a tensor on another device, or one that is sparse, nested, in oneDNN's layout or quantized by torch.
    """
    check_dense(name, x)
    for other, tensor in others.items():
        if tensor is not None:
            check_dense(other, tensor)
            check_device(other, tensor, x)


def check_dense(name: str, tensor: Tensor | None) -> None:
    """Raises `ValueError` unless this is a tensor whose elements lie in memory of its own."""
    if tensor is None:
        raise ValueError(f"{name} must be a tensor, got None")
    if tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_nested:
        _check_storage(name, tensor)
        return
    if tensor.is_quantized:
        kind, remedy = f"quantized by torch ({tensor.dtype})", "dequantize()"
    elif tensor.is_nested:
        kind, remedy = "nested", "to_padded_tensor(0)"
    else:
        kind, remedy = f"in the layout {tensor.layout}", "to_dense()"
    raise ValueError(f"{name} must be an ordinary dense tensor, but it is {kind}: call {name}.{remedy} first")


def _check_storage(name: str, tensor: Tensor) -> None:
    """Raises `ValueError` if the tensor's memory was freed, as FSDP does between uses; its shape is still there."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_meta or not tensor.numel():
        return  # other classes hold their values elsewhere, or have none
    try:
        held = tensor.untyped_storage().nbytes()
    except NotImplementedError:  # within torch.func
        return
    last = tensor.storage_offset() + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride()))
    needed = (last + 1) * tensor.element_size()
    if needed > held:
        raise ValueError(
            f"{name} has memory of {held} bytes, and its shape {tuple(tensor.shape)} needs {needed}: it was freed, as "
            "FSDP does between uses. Gather the parameters first"
        )


def check_device(name: str, tensor: Tensor, x: Tensor) -> None:
    """Raises `ValueError` unless `tensor` is on the device of `x`."""
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device} but the input is on {x.device}: move both to one device")


def check_activation(name: str, x: Tensor) -> None:
    """Raises `ValueError` unless `x` is dense, floating and has at least one dimension."""
    check_dense(name, x)
    if x.dim() == 0 or x.dtype not in ACTIVATION_DTYPES:
        raise ValueError(
            f"{name} must be a floating tensor with at least one dimension, got {x.dtype} of shape {tuple(x.shape)}"
        )


def checked_rotation(block: int, seed: int, in_features: int) -> Rotation | None:
    """Returns the rotation that an operator's arguments describe.

    Args:
        block: channels that are transformed together; 0 for no rotation.
        seed: of the signs.
        in_features: channels of the input.

    Returns:
        the rotation; None if `block` is 0.

    Raises:
        ValueError: this is no rotation of `in_features` channels.
    """
    if block == 0:
        return None
    rotation = Rotation(block, seed)
    rotation.check(in_features)
    return rotation


def check_checkpoint_layout(x: Tensor, weight: Weight) -> None:
    """Checks a weight in the checkpoint layout.

    Args:
        x: the input, whose device the weight must be on.
        weight: its tensors and sizes.

    Raises:
        ValueError: a tensor has a wrong shape, dtype or device.
    """
    packed, scale, zero, out_features, in_features, bits, group_size, _ = weight
    shapes = packed_shapes(out_features, in_features, bits, group_size, sym=zero is None)
    check_tensor("packed", packed, shapes["weight_packed"][0], (torch.int32,), x)
    check_tensor("scale", scale, shapes["weight_scale"][0], SCALE_DTYPES, x)
    if zero is not None:
        check_tensor("zero", zero, shapes["weight_zero_point"][0], (torch.int32,), x)


def check_cuda_layout(x: Tensor, weight: Weight) -> None:
    """Checks a weight in CUDA layout, as csrc/ops/cuda does.

    Args:
        x: the input, whose device the weight must be on.
        weight: its tensors and sizes.

    Raises:
        ValueError: a size or a width is out of range, or a tensor has a wrong shape, dtype or device.
    """
    packed, scale, zero, out_features, in_features, bits, group_size, _ = weight
    if bits not in KERNEL_BITS:
        raise ValueError(f"layout={CUDA_LAYOUT} is for 2, 3, 4 and 8 bits, got bits={bits}")
    if not (1 <= out_features < _MOST_FEATURES and 1 <= in_features < _MOST_FEATURES):
        raise ValueError(
            "the CUDA kernels take positive out_features and in_features below 2^24, got "
            f"{out_features} and {in_features}"
        )
    words, rows = cuda_layout.shapes(out_features, in_features, bits, group_size)
    check_tensor("packed", packed, words, (torch.int32,), x)
    check_tensor("scale", scale, rows, SCALE_DTYPES, x)
    if zero is not None:
        check_tensor("zero", zero, rows, (torch.uint8,), x)


def check_tensor(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    x: Tensor,
    reason: str = "the packed weight does not match its layer (in_features, out_features, bits, group_size)",
) -> None:
    """Checks one packed tensor.

    Args:
        name: of the argument, for the message.
        tensor: to check.
        shape: that it must have.
        dtypes: that it may have.
        x: the input, whose device it must be on.
        reason: why another shape is wrong, for the message.

    Raises:
        ValueError: another shape, dtype or device.
    """
    check_dense(name, tensor)
    if tensor.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} must have dtype {allowed}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}: {reason}")
    check_device(name, tensor, x)
