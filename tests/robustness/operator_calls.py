"""Calls of `torch.ops.qaig.*` with an argument or two that are wrong, odd, or only laid out otherwise."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from transformers_qaig.nn import ops
from transformers_qaig.nn.packing import CPU_ORDER, KERNEL_BITS, num_groups, pack, pack_zero_point
from transformers_qaig.rounding.columns import round_columns_reference

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
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass
class Call:
    """
    Attributes:
        operator: its name in `torch.ops.qaig`.
        arguments: what it is called with.
        text: how the arguments differ from those of a whole call.
    """

    operator: str
    arguments: list[Any]
    text: str = ""

    def run(self) -> Any:
        return getattr(torch.ops.qaig, self.operator)(*self.arguments)


def make(random: Random) -> Call:
    """A call of some operator, damaged in up to two places."""
    torch.manual_seed(random.getrandbits(32))
    call = random.choice(CALLS)(random)
    for _ in range(random.choice((0, 1, 1, 1, 1, 2))):
        index = random.randrange(len(call.arguments))
        changed, text = _changed(call.arguments[index], random)
        arguments = [changed if i == index else argument for i, argument in enumerate(call.arguments)]
        call = replace(call, arguments=arguments, text=f"{call.text} argument {index}: {text};")
    if random.random() < 0.05:
        call = replace(
            call, arguments=call.arguments[: random.randrange(len(call.arguments))], text="too few arguments"
        )
    return call


# -- whole calls


@dataclass
class _Layer:
    """A packed weight `[rows, columns]`: its tensors and sizes, in the order in which operators take them."""

    packed: Tensor
    scale: Tensor
    zero: Tensor | None
    rows: int
    columns: int
    bits: int
    group_size: int
    layout: int


def _layer(random: Random, columns: int | None = None, layout: int | None = None) -> _Layer:
    bits, rows = random.randrange(2, 9), random.choice((1, 3, 16, 33))
    columns = columns or random.choice((16, 32, 48, 96, 130))
    group_size = random.choice([size for size in (-1, 16, 32, 48, 65) if size == -1 or columns % size == 0])
    groups = num_groups(columns, group_size)
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    zero = pack_zero_point(torch.randint(0, 2**bits, (rows, groups), dtype=torch.uint8), bits)
    scale = (torch.rand(rows, groups) + 0.1).to(random.choice(FLOATS))
    layer = _Layer(pack(codes, bits), scale, random.choice((None, zero)), rows, columns, bits, group_size, 0)
    wanted = random.choice((0, CPU_ORDER)) if layout is None else layout
    if wanted and bits in KERNEL_BITS and ops.kernel_layout(torch.device("cpu"), bits) == CPU_ORDER:
        packed, scale, zero = torch.ops.qaig.repack(
            layer.packed, layer.scale, layer.zero, rows, columns, bits, group_size, 0
        )
        return _Layer(packed, scale, None if layer.zero is None else zero, rows, columns, bits, group_size, CPU_ORDER)
    return layer


def _input(random: Random, width: int) -> Tensor:
    shape = random.choice(((), (1,), (3,), (17,), (2, 3), (0,), (2, 0, 3), (1, 1, 1, 1, 2)))
    return torch.randn(*shape, width).to(random.choice((*FLOATS, torch.float64)))


def _rotation(random: Random, columns: int) -> tuple[int, int]:
    return random.choice([(0, 0), *((block, 5) for block in (16, 32) if columns % block == 0)])


def _bias(random: Random, rows: int) -> Tensor | None:
    return random.choice((None, torch.randn(rows), torch.randn(rows).half(), torch.randn(rows).double()))


def _linear(random: Random, name: str = "linear") -> Call:
    w = _layer(random)
    arguments = [
        _input(random, w.columns), w.packed, w.scale, w.zero, _bias(random, w.rows), *_rotation(random, w.columns),
        w.rows, w.bits, w.group_size, random.choice((8, 16)), w.layout,
    ]  # fmt: skip
    return Call(name, arguments)


def _linear_reference(random: Random) -> Call:
    return _linear(random, "linear_reference")


def _linear_many(random: Random) -> Call:
    columns, layout = random.choice((32, 96)), random.choice((0, CPU_ORDER))
    layers = [_layer(random, columns, layout) for _ in range(random.choice((0, 1, 2, 3)))]
    layers = [w for w in layers if w.layout == layout]
    rotations = [_rotation(random, columns) for _ in layers]
    arguments = [
        _input(random, columns), [w.packed for w in layers], [w.scale for w in layers], [w.zero for w in layers],
        [_bias(random, w.rows) for w in layers], [r[0] for r in rotations], [r[1] for r in rotations],
        [w.rows for w in layers], [w.bits for w in layers], [w.group_size for w in layers], random.choice((8, 16)),
        layout,
    ]  # fmt: skip
    return Call("linear_many", arguments)


def _linear_grad_input(random: Random) -> Call:
    w = _layer(random)
    block, seed = _rotation(random, w.columns)
    arguments = [
        _input(random, w.rows),
        w.packed,
        w.scale,
        w.zero,
        block,
        seed,
        w.columns,
        w.bits,
        w.group_size,
        w.layout,
    ]
    return Call("linear_grad_input", arguments)


def _repack(random: Random) -> Call:
    return Call("repack", list(vars(_layer(random)).values()))


def _dequantize(random: Random) -> Call:
    w = _layer(random, layout=CPU_ORDER)
    start = random.randrange(w.rows + 1)
    return Call("dequantize", [*vars(w).values(), start, random.randrange(start, w.rows + 1)])


def _embedding(random: Random) -> Call:
    w = _layer(random)
    shape = random.choice(((), (1,), (4,), (2, 3), (0,)))
    ids = torch.randint(0, w.rows, shape, dtype=random.choice((torch.int32, torch.int64)))
    return Call("embedding", [ids, *vars(w).values()])


def _round_columns(random: Random) -> Call:
    columns, rows, groups = random.choice((1, 4, 9)), random.choice((1, 5, 32)), random.choice((1, 2))
    step = torch.rand(groups, rows) + 0.1
    arguments = [
        torch.randn(columns, rows), torch.zeros(columns, rows), torch.zeros(columns, rows, dtype=torch.uint8),
        torch.eye(columns) + torch.rand(columns, columns).triu(1), torch.randint(0, groups, (columns,)), step,
        step.clone(), torch.randint(0, 4, (groups, rows)).float(), random.choice((3, 7, 15, 255)),
    ]  # fmt: skip
    return Call("round_columns", arguments)


CALLS: tuple[Callable[[Random], Call], ...] = (
    _linear, _linear, _linear, _linear_reference, _linear_many, _linear_many, _linear_grad_input, _repack, _dequantize,
    _embedding, _embedding, _round_columns,
)  # fmt: skip
REFERENCES: dict[str, Callable[..., Any]] = {
    "linear": ops.linear_reference,
    "linear_reference": ops.linear_reference,
    "linear_grad_input": ops.linear_grad_input,
    "embedding": ops.embedding_reference,
    "round_columns": round_columns_reference,
}


# -- arguments that are not what they should be


def _changed(value: Any, random: Random) -> tuple[Any, str]:
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
        changed, text = _changed(value[index], random)
        return [changed if i == index else item for i, item in enumerate(value)], f"item {index}: {text}"
    if isinstance(value, int) and random.random() < 0.9:
        changed = random.choice(INTEGERS)
        return changed, f"{changed} for {value}"
    changed = random.choice((None, "x", 1.5, 2**70, [], torch.zeros(2, 2), torch.zeros(0), 10**30, -1))
    return changed, f"{changed!r} for {type(value).__name__}"


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


TENSORS: tuple[tuple[str, Callable[[Tensor, Random], Tensor]], ...] = (
    ("another type", _type), ("another shape", _shape), ("another shape", _shape), ("other strides", _strides),
    ("expanded", _expanded), ("other content", _content), ("sparse", _sparse), ("quantized", _quantized),
    ("mkldnn", lambda t, _: t.to_mkldnn()), ("meta", lambda t, _: t.to("meta")),
    ("requires grad", lambda t, _: t.clone().requires_grad_()), ("negative view", _negative),
    ("nested", lambda t, _: torch.nested.nested_tensor([t, t])), ("None", lambda t, _: None),
)  # fmt: skip
