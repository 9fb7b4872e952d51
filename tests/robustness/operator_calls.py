"""Calls of `torch.ops.qaig.*` with an argument or two that are wrong, odd, or only laid out otherwise."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from tests.robustness.odd_arguments import changed
from transformers_qaig.formats.packing import CPU_LAYOUT, KERNEL_BITS, num_groups, pack, pack_zero_point
from transformers_qaig.nn import experts_ops, experts_routing, ops
from transformers_qaig.rounding.gptq_columns import gptq_columns_reference

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
        other, text = changed(call.arguments[index], random)
        arguments = [other if i == index else argument for i, argument in enumerate(call.arguments)]
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
    wanted = random.choice((0, CPU_LAYOUT)) if layout is None else layout
    if wanted and bits in KERNEL_BITS and ops.kernel_layout(torch.device("cpu"), bits) == CPU_LAYOUT:
        packed, scale, zero = torch.ops.qaig.repack(
            layer.packed, layer.scale, layer.zero, rows, columns, bits, group_size, 0
        )
        return _Layer(packed, scale, None if layer.zero is None else zero, rows, columns, bits, group_size, CPU_LAYOUT)
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
    columns, layout = random.choice((32, 96)), random.choice((0, CPU_LAYOUT))
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


def _experts_linear(random: Random, name: str = "experts_linear") -> Call:
    count, rows, columns = random.choice((1, 2, 5)), random.choice((1, 16, 33)), random.choice((32, 96, 130))
    layout = random.choice((0, ops.kernel_layout(torch.device("cpu"), 4)))
    group_size = random.choice((-1, columns // 2))
    widths = [random.choice(KERNEL_BITS if layout else range(2, 9)) for _ in range(random.choice((1, count)))]
    sym, dtype, groups = random.random() < 0.5, random.choice(FLOATS), num_groups(columns, group_size)
    packed, scales, zeros = [], [], []
    for bits in widths * (count // len(widths)):
        codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
        zero = None if sym else pack_zero_point(torch.randint(0, 2**bits, (rows, groups), dtype=torch.uint8), bits)
        words, scale = pack(codes, bits), (torch.rand(rows, groups) + 0.1).to(dtype)
        if layout:
            words, scale, zero = torch.ops.qaig.repack(words, scale, zero, rows, columns, bits, group_size, 0)
        packed.append(words.flatten())
        scales.append(scale)
        zeros.append(zero)
    zero_points = None if sym else torch.stack(zeros) if layout else torch.cat([zero.flatten() for zero in zeros])
    routed = torch.tensor([0, *(random.choice((0, 0, 1, 3, 9)) for _ in range(count))])
    x = torch.randn(int(routed.sum()) + random.choice((0, 0, 2)), columns)
    arguments = [
        x.to(random.choice((*FLOATS, torch.float64))), routed.cumsum(0).int(), torch.cat(packed), torch.stack(scales),
        zero_points, widths, rows, group_size, random.choice((8, 16)), layout,
    ]  # fmt: skip
    return Call(name, arguments)


def _experts_linear_reference(random: Random) -> Call:
    return _experts_linear(random, "experts_linear_reference")


def _experts_linear_grad_input(random: Random) -> Call:
    x, offsets, *weights, rows, group_size, _, layout = _experts_linear(random).arguments
    grad = torch.randn(len(x), rows, dtype=x.dtype)
    return Call("experts_linear_grad_input", [grad, offsets, *weights, x.shape[1], group_size, layout])


def _experts_route(random: Random) -> Call:
    tokens, routed, count = random.choice((0, 1, 5)), random.choice((1, 2, 8)), random.choice((1, 4))
    hidden = torch.randn(tokens, random.choice((1, 64))).to(random.choice((*FLOATS, torch.float64)))
    index = torch.randint(0, count + 2, (tokens, routed), dtype=random.choice((torch.int32, torch.int64)))
    return Call("experts_route", [hidden, index, count, count + 1])


def _experts_sum(random: Random) -> Call:
    tokens, routed = random.choice((0, 1, 5)), random.choice((1, 2, 8))
    rows = torch.randn(tokens * routed, random.choice((1, 64))).to(random.choice(FLOATS))
    weights = torch.rand(tokens, routed).to(random.choice(FLOATS))
    return Call("experts_sum", [rows, weights, torch.randperm(tokens * routed)])


def _repack(random: Random) -> Call:
    return Call("repack", list(vars(_layer(random)).values()))


def _dequantize(random: Random) -> Call:
    w = _layer(random, layout=CPU_LAYOUT)
    start = random.randrange(w.rows + 1)
    return Call("dequantize", [*vars(w).values(), start, random.randrange(start, w.rows + 1)])


def _dequantize_columns(random: Random) -> Call:
    w = _layer(random)
    start = random.randrange(w.columns + 1)
    return Call("dequantize_columns", [*vars(w).values(), start, random.randrange(start, w.columns + 1)])


def _embedding(random: Random) -> Call:
    w = _layer(random)
    shape = random.choice(((), (1,), (4,), (2, 3), (0,)))
    ids = torch.randint(0, w.rows, shape, dtype=random.choice((torch.int32, torch.int64)))
    return Call("embedding", [ids, *vars(w).values()])


def _gptq_columns(random: Random) -> Call:
    columns, rows, groups = random.choice((1, 4, 9)), random.choice((1, 5, 32)), random.choice((1, 2))
    step = torch.rand(groups, rows) + 0.1
    arguments = [
        torch.randn(columns, rows), torch.zeros(columns, rows), torch.zeros(columns, rows, dtype=torch.uint8),
        torch.eye(columns) + torch.rand(columns, columns).triu(1), torch.randint(0, groups, (columns,)), step,
        step.clone(), torch.randint(0, 4, (groups, rows)).float(), random.choice((3, 7, 15, 255)),
    ]  # fmt: skip
    return Call("gptq_columns", arguments)


CALLS: tuple[Callable[[Random], Call], ...] = (
    _linear, _linear, _linear, _linear_reference, _linear_many, _linear_many, _linear_grad_input, _repack, _dequantize,
    _dequantize_columns, _embedding, _embedding, _gptq_columns, _experts_linear, _experts_linear, _experts_linear,
    _experts_linear_reference, _experts_linear_grad_input, _experts_route, _experts_sum,
)  # fmt: skip
REFERENCES: dict[str, Callable[..., Any]] = {
    "linear": ops.linear_reference,
    "linear_reference": ops.linear_reference,
    "linear_grad_input": ops.linear_grad_input,
    "embedding": ops.embedding_reference,
    "experts_linear": experts_ops.experts_linear_reference,
    "experts_linear_reference": experts_ops.experts_linear_reference,
    "experts_linear_grad_input": experts_ops.experts_linear_grad_input,
    "experts_route": experts_routing.experts_route_reference,
    "experts_sum": experts_routing.experts_sum_reference,
    "gptq_columns": gptq_columns_reference,
}
