"""The operators that Python launches, on a driver that runs each launch on the emulator. Tensors are the CPU's."""

import pytest
import torch

from tests.kernels.cuda.products import arguments, close, exact
from tools.emulator.compilation import COMPILER
from tools.emulator.emulated_driver import PROCESSORS, CpuDevice
from tools.emulator.weights import make_weight, random_weight
from transformers_qaig.formats import reference
from transformers_qaig.formats.hadamard import Rotation, rotate
from transformers_qaig.formats.packing import CHECKPOINT_LAYOUT, CUDA_LAYOUT
from transformers_qaig.kernels.cuda import interface
from transformers_qaig.kernels.cuda.operators import Operators
from transformers_qaig.nn import ops

QUANTIZE = "qaig_quantize_activations_f16"

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("rows", "activation_bits"), [(1, 16), (9, 16), (2, 8), (17, 16), (50, 8), (257, 16)])
def test_linear(machine, bits, dtype, rows, activation_bits):
    """gemv of both sizes, both gemms, and the product with the dequantized weight past sm_80's threshold."""
    weight = random_weight(bits, 130, 96, 32, dtype=dtype, bias=dtype)
    x = torch.randn(rows, 96).to(dtype)
    y = machine.operators.linear(x, *arguments(weight), activation_bits, CUDA_LAYOUT)
    assert y.dtype == dtype
    close(y, x, weight, activation_bits)
    names = [name for name, *_ in machine.api.launches]
    suffix = "f16" if dtype == torch.float16 else "bf16"
    if rows == 257:
        assert names == [f"qaig_dequantize_w{bits}"]
    else:
        quantized = [f"qaig_quantize_activations_{suffix}"] if activation_bits == 8 else []
        gemv = f"qaig_gemv_w{bits}_{suffix}_m{8 if rows <= 8 else 16}"
        gemm = "gemm_i8" if activation_bits == 8 else "gemm_f16"
        assert names == [*quantized, gemv if rows <= 16 else f"qaig_{gemm}_w{bits}_{suffix}"]


def test_rows_beyond_one_launch(machine):
    """GPUs without gemm kernels take more rows by gemv, in several launches, and unpack the weight for fewer."""
    operators = Operators(machine.driver, lambda device: CpuDevice(0, 75, PROCESSORS))
    weight = random_weight(3, 70, 64, 32)
    x = torch.randn(2, 10, 64).half()
    y = operators.linear(x, *arguments(weight), 8, CUDA_LAYOUT)
    assert y.shape == (2, 10, 70)
    close(y, x, weight, 8)
    x = torch.randn(33, 64).half()
    close(operators.linear(x, *arguments(weight), 16, CUDA_LAYOUT), x, weight)
    assert [name for name, *_ in machine.api.launches] == [
        QUANTIZE,
        "qaig_gemv_w3_f16_m16",
        "qaig_gemv_w3_f16_m8",
        "qaig_dequantize_w3",
    ]


def test_gemm_of_layers_of_several_widths(machine):
    """One launch for each width."""
    weights = [random_weight(bits, n, 96, g) for bits, n, g in ((2, 64, 32), (4, 130, 96), (4, 10, 8))]
    x = torch.randn(20, 96).half()
    lists = [list(column) for column in zip(*(arguments(w) for w in weights))]
    for y, weight in zip(machine.operators.linear_many(x, *lists, 16, CUDA_LAYOUT), weights, strict=True):
        close(y, x, weight)
    assert [name for name, *_ in machine.api.launches] == [
        "qaig_gemm_f16_w2_f16",
        QUANTIZE,
        "qaig_gemm_f16_w4_f16",
    ]


@pytest.mark.parametrize(
    "case", ["groups of 20", "odd K", "no zero points", "x misaligned", "x strided", "float32 bias"]
)
def test_what_needs_care(machine, case):
    weight = random_weight(
        4, 65, 100, 20 if case == "groups of 20" else -1, sym=case == "no zero points",
        bias={"float32 bias": torch.float32}.get(case),
    )  # fmt: skip
    if case == "odd K":
        weight = random_weight(4, 65, 101)
    x = torch.randn(3, weight.in_features).half()
    if case == "x misaligned":
        x = torch.cat([torch.zeros(1).half(), x.flatten()])[1:].view(3, -1)
    if case == "x strided":
        x = torch.randn(weight.in_features, 3).half().t()
    close(machine.operators.linear(x, *arguments(weight), 16, CUDA_LAYOUT), x, weight)


def test_a_double_bias(machine):
    weight = random_weight(4, 65, 64, bias=torch.float64)
    x = torch.randn(3, 64).half()
    close(machine.operators.linear(x, *arguments(weight), 16, CUDA_LAYOUT), x, weight)


def test_one_launch_for_several_layers(machine):
    weights = [random_weight(bits, n, 96, g) for bits, n, g in ((2, 64, 32), (4, 130, 96), (3, 10, 8))]
    x = torch.randn(4, 96).half()
    lists = [list(column) for column in zip(*(arguments(w) for w in weights))]
    results = machine.operators.linear_many(x, *lists, 16, CUDA_LAYOUT)
    for y, weight in zip(results, weights):
        close(y, x, weight)
    # The groups of 8 want x in an order of their own.
    assert [name for name, *_ in machine.api.launches] == [QUANTIZE, "qaig_gemv_mixed_f16_m8"]
    assert machine.operators.linear_many(x, *([] for _ in range(9)), 16, CUDA_LAYOUT) == []


def test_more_layers_than_a_launch_takes(machine):
    weights = [random_weight(4, 64, 64, 32) for _ in range(interface.MAX_LAYERS + 1)]
    x = torch.randn(1, 64).half()
    lists = [list(column) for column in zip(*(arguments(w) for w in weights))]
    for y, weight in zip(machine.operators.linear_many(x, *lists, 16, CUDA_LAYOUT), weights):
        close(y, x, weight)
    assert len(machine.api.launches) == 2


def test_no_rows(machine):
    weight = random_weight(4, 65, 64)
    y = machine.operators.linear(torch.empty(2, 0, 64).half(), *arguments(weight), 16, CUDA_LAYOUT)
    assert y.shape == (2, 0, 65)
    assert machine.api.launches == []


def test_dequantize(machine):
    weight = random_weight(3, 200, 96, 32)
    sizes = (weight.out_features, weight.in_features, weight.bits, weight.group_size)
    tensors = (weight.words, weight.scale, weight.zero)
    rows = machine.operators.dequantize(*tensors, *sizes, CUDA_LAYOUT, 70, 140)
    packed, scale, zero = weight.checkpoint
    whole = reference.dequantize(reference.Weight(packed, scale, zero, *sizes, CHECKPOINT_LAYOUT), torch.float32)
    torch.testing.assert_close(rows, whole[70:140], rtol=0, atol=0)
    with pytest.raises(ValueError, match="rows 70 to 201 are not within the 200"):
        machine.operators.dequantize(*tensors, *sizes, CUDA_LAYOUT, 70, 201)


def test_more_rows_than_one_launch_dequantizes(machine, monkeypatch):
    monkeypatch.setattr(interface, "MAX_GRID_Y", 2)
    weight = random_weight(3, 300, 96, 32)
    sizes = (300, 96, 3, 32)
    rows = machine.operators.dequantize(weight.words, weight.scale, weight.zero, *sizes, CUDA_LAYOUT, 1, 290)
    whole = reference.dequantize(reference.Weight(*weight.checkpoint, *sizes, CHECKPOINT_LAYOUT), torch.float32)
    assert torch.equal(rows, whole[1:290])
    assert [grid[1] for _, grid, _ in machine.api.launches] == [2, 2, 1]


@pytest.fixture
def cuda_order_is_read(machine, monkeypatch):
    """The reference reads a weight in CUDA layout, as it does on a GPU."""
    monkeypatch.setattr(ops, "kernel_layout", lambda device, bits: CUDA_LAYOUT)
    monkeypatch.setattr(torch.ops.qaig, "dequantize", machine.operators.dequantize)


@pytest.mark.usefixtures("cuda_order_is_read")
@pytest.mark.parametrize(("dtype", "scale", "rows"), [("float32", "float16", 2), ("float16", "float32", 2)])
def test_what_has_no_kernel(machine, dtype, scale, rows):
    """float32 inputs go to the reference, float32 scales are unpacked: nothing is refused."""
    weight = random_weight(4, 65, 64, 32, dtype=getattr(torch, scale))
    x = torch.randn(rows, 64).to(getattr(torch, dtype))
    close(machine.operators.linear(x, *arguments(weight), 16, CUDA_LAYOUT), x, weight)
    assert [name for name, *_ in machine.api.launches] == ["qaig_dequantize_w4"]


@pytest.mark.parametrize("group_size", [32, 8])
def test_a_rotated_input(machine, group_size):
    weight = random_weight(4, 65, 96, group_size, bias=torch.float16)
    x = torch.randn(3, 96 + 1).half()[:, 1:]
    *tensors, _, _, n, bits, group = arguments(weight)
    y = machine.operators.linear(x, *tensors, 32, 7, n, bits, group, 8, CUDA_LAYOUT)
    close(y, rotate(x, Rotation(32, 7)), weight, 8)
    assert [name for name, *_ in machine.api.launches] == [QUANTIZE, "qaig_gemv_w4_f16_m8"]


def test_layers_that_rotate_their_input_apart(machine):
    weights = [random_weight(4, 64, 96, 32) for _ in range(5)]
    rotations = [Rotation(32, 7), Rotation(32, 8), Rotation(16, 7), None, Rotation(32, 7)]
    x = torch.randn(2, 96).bfloat16()
    lists = [list(column) for column in zip(*(arguments(w) for w in weights))]
    lists[4:6] = [[r.block if r else 0 for r in rotations], [r.seed if r else 3 for r in rotations]]
    results = machine.operators.linear_many(x, *lists, 8, CUDA_LAYOUT)
    for y, weight, rotation in zip(results, weights, rotations, strict=True):
        close(y, rotate(x, rotation) if rotation else x, weight, 8)
    assert [name for name, *_ in machine.api.launches] == 4 * ["qaig_quantize_activations_bf16"] + [
        "qaig_gemv_w4_bf16_m8"
    ]


@pytest.mark.parametrize("rows", [20, 257])
@pytest.mark.parametrize("capability", [75, 80])
def test_many_rotated_rows(machine, rows, capability):
    """As integers where there are kernels for them, else by the dense product of integers."""
    operators = Operators(machine.driver, lambda device: CpuDevice(0, capability, PROCESSORS))
    weights = [random_weight(4, 65, 96, group, bias=torch.float16) for group in (32, 8)]
    weights.append(random_weight(2, 10, 96, 32, dtype=torch.float32))
    x = torch.randn(rows, 96).half()
    lists = [list(column) for column in zip(*(arguments(w) for w in weights))]
    lists[4:6] = [[32] * 3, [7] * 3]
    for y, weight in zip(operators.linear_many(x, *lists, 8, CUDA_LAYOUT), weights, strict=True):
        close(y, rotate(x, Rotation(32, 7)), weight, 8)
    names = [name for name, *_ in machine.api.launches]
    if capability == 80:  # the float32 scale's layer reads x in an order of its own, and unpacks its weight
        assert names == [
            QUANTIZE,
            "qaig_dequantize_w2",
            *[QUANTIZE] * 2,
            "qaig_gemm_i8_w4_f16",
        ]
    elif rows == 257:
        assert names == [QUANTIZE, *["qaig_dequantize_w4"] * 2, "qaig_dequantize_w2"]


def test_rows_that_are_not_rounded(machine):
    """Infinities and NaNs, in the product of integers and in the dense one."""
    weight = random_weight(4, 65, 96, 32, sym=True)
    x = torch.randn(35, 96).half()
    x[4, 3], x[5, 9] = torch.inf, torch.nan
    for capability in (75, 80):
        operators = Operators(machine.driver, lambda device: CpuDevice(0, capability, PROCESSORS))  # noqa: B023
        y = operators.linear(x, *arguments(weight), 8, CUDA_LAYOUT)
        want = exact(weight, x, 8)
        assert torch.equal(y.isnan(), want.isnan())
        assert torch.equal(y.isinf(), want.isinf())
        close(torch.cat([y[:4], y[6:]]), torch.cat([x[:4], x[6:]]), weight, 8)


def test_products_of_integers_do_not_overflow(machine):
    """In float16, where those of x itself do not."""
    weight = make_weight(torch.full((8, 512), 255, dtype=torch.uint8), torch.full((8, 1), 0.125), None, 8, -1)
    x = torch.full((3, 512), 0.01).half()
    close(machine.operators.linear(x, *arguments(weight), 8, CUDA_LAYOUT), x, weight, 8)
    assert [name for name, *_ in machine.api.launches] == [QUANTIZE, "qaig_dequantize_w8"]


@pytest.mark.usefixtures("cuda_order_is_read")
def test_rotated_inputs_of_the_reference(machine):
    """Rotated values that are not rounded to integers."""
    weight = random_weight(4, 65, 64, 32, bias=torch.float16)
    x = torch.randn(2, 64).half()
    *tensors, _, _, n, bits, group = arguments(weight)
    y = machine.operators.linear(x, *tensors, 32, 7, n, bits, group, 16, CUDA_LAYOUT)
    packed = reference.Weight(*weight.checkpoint, n, 64, bits, group, CHECKPOINT_LAYOUT)
    assert torch.equal(y, reference.linear(x, packed, weight.bias, Rotation(32, 7), 16))


BAD = {
    "packed": lambda a: a | {"packed": a["packed"][:, :1].contiguous()},
    "packed must have dtype": lambda a: a | {"packed": a["packed"].float()},
    "scale": lambda a: a | {"scale": a["scale"][..., :1]},
    "scale must have dtype": lambda a: a | {"scale": a["scale"].double()},
    "zero": lambda a: a | {"zero": a["zero"][:1]},
    "zero must have dtype": lambda a: a | {"zero": a["zero"].int()},
    "bias": lambda a: a | {"bias": torch.zeros(3).half()},
    "group_size": lambda a: a | {"group_size": 33},
    "out_features": lambda a: a | {"out_features": 1 << 24},
    "bits=5": lambda a: a | {"bits": 5},
    "packed must have shape": lambda a: a | {"out_features": 4096},
    "x must be": lambda a: a | {"x": a["x"].int()},
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments_never_reach_a_kernel(machine, what):
    weight = random_weight(4, 130, 96, 32, bias=torch.float16)
    names = ("packed", "scale", "zero", "bias", "rotation_block", "rotation_seed", "out_features", "bits", "group_size")
    call = {"x": torch.randn(1, 96).half()} | dict(zip(names, arguments(weight)))
    with pytest.raises(ValueError, match=what):
        machine.operators.linear(*BAD[what](call).values(), 16, CUDA_LAYOUT)
    assert machine.api.launches == []


def test_options_without_a_kernel(machine):
    weight = random_weight(4, 64, 64)
    x = torch.randn(1, 64).half()
    with pytest.raises(NotImplementedError, match="activation_bits=4"):
        machine.operators.linear(x, *arguments(weight), 4, CUDA_LAYOUT)
    with pytest.raises(ValueError, match="rotation: block"):
        machine.operators.linear(x, *arguments(weight)[:4], 48, 0, 64, 4, -1, 16, CUDA_LAYOUT)
    with pytest.raises(ValueError, match="one entry per layer"):
        machine.operators.linear_many(x, [weight.words], [], [None], [None], [0], [0], [64], [4], [-1], 16, CUDA_LAYOUT)
