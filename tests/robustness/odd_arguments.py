"""Arguments of operators that are not what they should be, or only laid out otherwise."""

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

INTEGERS = (
    -(2**63),
    -(2**31),
    -2,
    -1,
    0,
    1,
    2,
    3,
    5,
    7,
    9,
    16,
    17,
    32,
    33,
    64,
    256,
    2**24,
    2**31,
    2**32 + 1,
    2**62,
    2**63 - 1,
)
TYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32,
    torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16,
)  # fmt: skip


def changed(value: Any, random: Random) -> tuple[Any, str]:
    """Another argument in the place of `value`, and how it differs."""
    if isinstance(value, Tensor):
        name, change = random.choice(TENSORS)
        try:
            return change(value, random), name
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            return value, f"{name}, which this tensor cannot be ({type(error).__name__})"
    if isinstance(value, list) and value:
        kind = random.randrange(5)
        if kind == 0:
            return value[:-1], "one less"
        if kind == 1:
            return [*value, value[0]], "one more"
        if kind == 2:
            return [], "empty"
        index = random.randrange(len(value))
        other, text = changed(value[index], random)
        return [other if i == index else item for i, item in enumerate(value)], f"item {index}: {text}"
    if isinstance(value, int) and random.random() < 0.9:
        number = random.choice(INTEGERS)
        return number, f"{number} for {value}"
    other = random.choice((None, "x", 1.5, 2**70, [], torch.zeros(2, 2), torch.zeros(0), 10**30, -1))
    return other, f"{other!r} for {type(value).__name__}"


def _type(t: Tensor, random: Random) -> Tensor:
    return t.to(random.choice(TYPES))


def _shape(t: Tensor, random: Random) -> Tensor:
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda t: t.transpose(0, -1), lambda t: t[..., :-1], lambda t: t[:-1], lambda t: t[None], lambda t: t.flatten(),
        lambda t: t[..., None], lambda t: t[:0], lambda t: t[..., :0], lambda t: t.flatten()[0],
        lambda t: torch.cat([t, t]), lambda t: torch.cat([t, t], -1), lambda t: t.new_empty(0),
        lambda t: t.new_zeros(1, 1),
    ]  # fmt: skip
    return random.choice(ways)(t)


def _strides(t: Tensor, random: Random) -> Tensor:
    """The same values, laid out otherwise in memory."""
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),  # not aligned
        lambda t: t.flip(0).flip(0),
    ]
    return random.choice(ways)(t)


def _expanded(t: Tensor, random: Random) -> Tensor:
    return t[:1].expand(t.shape) if random.random() < 0.5 else t[..., :1].expand(t.shape)


def _content(t: Tensor, random: Random) -> Tensor:
    changed = t.clone()
    flat = changed.view(-1)
    if t.is_floating_point():
        number: float = random.choice((float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e30))
    else:
        number = random.choice((-1, 0, 1, 2**31 - 1, torch.iinfo(t.dtype).max, torch.iinfo(t.dtype).min))
    if random.random() < 0.5:
        flat.fill_(number)
    else:
        flat[random.randrange(len(flat))] = number
    return changed


def _sparse(t: Tensor, random: Random) -> Tensor:
    return random.choice((Tensor.to_sparse, Tensor.to_sparse_csr, Tensor.to_sparse_csc))(t)


def _quantized(t: Tensor, random: Random) -> Tensor:
    return torch.quantize_per_tensor(t.float(), 0.1, 3, random.choice((torch.quint8, torch.qint8, torch.qint32)))


def _negative(t: Tensor, random: Random) -> Tensor:
    if t.is_quantized:
        raise TypeError("torch itself crashes at the first use of such a view")
    torch.neg(t)  # not every type can be
    return torch._neg_view(t)


def freed(t: Tensor, left: int = 0) -> Tensor:
    """A copy whose memory was freed except `left` bytes, as FSDP does between uses; its shape is still there."""
    copy = t.clone()
    copy.untyped_storage().resize_(left)
    return copy


def is_freed(t: Tensor) -> bool:
    """Whether some of the elements of a dense tensor have no memory."""
    if t.is_meta or not t.numel():
        return False
    last = t.storage_offset() + sum((size - 1) * step for size, step in zip(t.shape, t.stride()))
    return (last + 1) * t.element_size() > t.untyped_storage().nbytes()


def _freed(t: Tensor, random: Random) -> Tensor:
    return freed(t, random.choice((0, max(0, t.numel() * t.element_size() - 1))))


TENSORS: tuple[tuple[str, Callable[[Tensor, Random], Tensor]], ...] = (
    ("another type", _type), ("another shape", _shape), ("another shape", _shape), ("other strides", _strides),
    ("expanded", _expanded), ("other content", _content), ("sparse", _sparse), ("quantized", _quantized),
    ("mkldnn", lambda t, _: t.to_mkldnn()), ("meta", lambda t, _: t.to("meta")),
    ("requires grad", lambda t, _: t.clone().requires_grad_()), ("negative view", _negative),
    ("nested", lambda t, _: torch.nested.nested_tensor([t, t])), ("None", lambda t, _: None),
    ("freed", _freed),
)  # fmt: skip
