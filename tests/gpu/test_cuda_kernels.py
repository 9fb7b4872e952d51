"""The CUDA kernels on a GPU: the sweep that the emulator runs, and what only a device can show."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.cuda.gptq_cases import by_reference, random_columns, same
from tests.kernels.cuda.products import BITS, DTYPES, ROUNDING, error
from tests.nn.cpu_layers import exact, random_layer
from transformers_qaig.formats.hadamard import BLOCKS, Rotation
from transformers_qaig.formats.packing import CUDA_LAYOUT
from transformers_qaig.nn import QAIGLinear

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

# Sizes, which tests/kernels/cuda/test_gpu_tests.py makes small.
SHAPES = ((64, 64), (1, 128), (200, 384), (1152, 4096), (577, 256), (4096, 4096), (3584, 18944))
ROWS = (1, 2, 7, 8, 11, 16, 17, 40, 100)
WIDE, ROTATED, LONG = 4096, 2304, 100_000
CALLS = 200


def on_gpu(layer: QAIGLinear, device: str = "cuda") -> QAIGLinear:
    layer = layer.to(device)
    assert layer.to_kernel_layout(), "there are no CUDA kernels: see python -m transformers_qaig env"
    assert layer.layout == CUDA_LAYOUT
    return layer


def layer_on_gpu(*args: Any, device: str = "cuda", **options: Any) -> QAIGLinear:
    """Of random codes, packed there: on the CPU the large ones take longer than all the rest."""
    with torch.device(device):
        return on_gpu(random_layer(*args, **options), device)


def check(layer: QAIGLinear, x: Tensor, tolerance: float | None = None) -> None:
    y = layer(x)
    assert y.dtype == x.dtype
    assert error(y, exact(layer, x)) < (tolerance or ROUNDING[x.dtype])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_sweep(bits, dtype, activation_bits):
    for (n, k), group_size, sym in itertools.product(SHAPES, (32, 64, 128, -1), (False, True)):
        if k % group_size == 0:
            layer = layer_on_gpu(bits, group_size, sym, n, k, dtype=dtype, activation_bits=activation_bits)
            for rows in ROWS:
                x = torch.randn(rows, k, device="cuda") / 16  # so that no result is beyond float16
                check(layer, x.to(dtype))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotated_inputs(block, dtype):
    options = {"activation_bits": 8, "rotation": Rotation(block, 2**63 - 5), "dtype": dtype}
    for bits, group_size, rows in itertools.product(BITS, (128, -1), (1, 11, 40, 600)):
        layer = layer_on_gpu(bits, group_size, False, 200, ROTATED, **options)
        x = torch.randn(rows, ROTATED, device="cuda").to(dtype)
        check(layer, x, 2 * ROUNDING[dtype] if rows == 600 else None)  # on some GPUs by cuBLAS, the weight rounded


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [3, 40, 600])
def test_rows_that_are_not_rounded_to_8_bits(dtype, rows):
    """Infinities and NaNs go through as in torch, and reach no other row."""
    for bits in BITS:
        layer = layer_on_gpu(bits, 64, True, 200, 256, dtype=dtype, activation_bits=8)
        x = torch.randn(rows, 256, device="cuda").to(dtype)
        x[0, 40], x[1, 50] = torch.inf, torch.nan
        y, expected = layer(x), exact(layer, x)
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.isinf(), expected.isinf())
        assert error(y[2:], expected[2:]) < 2 * ROUNDING[dtype]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows(bits, dtype):
    """By a gemm kernel or, dequantized to the dtype, by cuBLAS: as good as a dense layer."""
    layer = layer_on_gpu(bits, 128, out_features=1000, in_features=WIDE, dtype=dtype)
    for rows in (64, 128, 300, 2048):
        x = torch.randn(rows, WIDE, device="cuda").to(dtype)
        dense = torch.nn.functional.linear(x, layer.dequantize(dtype), layer.bias)
        assert error(layer(x), exact(layer, x)) <= 1.05 * error(dense, exact(layer, x))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("out_features", "in_features", "group_size"),
    [(1, 32, -1), (15, 33, -1), (17, 114, 57), (33, 228, 114), (31, 1, -1), (50, 1100, 275), (70, 40, -1)],
)
def test_ragged_shapes(bits, out_features, in_features, group_size):
    for dtype, rows in itertools.product(DTYPES, (1, 11, 60)):
        layer = layer_on_gpu(bits, group_size, False, out_features, in_features, dtype=dtype)
        check(layer, torch.randn(rows, in_features, device="cuda").to(dtype), 2 * ROUNDING[dtype])


@pytest.mark.parametrize("bits", BITS)
def test_weights_are_the_cpus_to_the_bit(bits):
    for dtype, sym in itertools.product(DTYPES, (False, True)):
        layer = random_layer(bits, 32, sym, 130, 192, dtype=dtype)
        expected = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        weight = layer.dequantize(torch.float32)
        layer = on_gpu(layer)
        assert torch.equal(layer.dequantize(torch.float32).cpu(), weight)
        for name, tensor in layer.state_dict().items():
            assert torch.equal(tensor.cpu(), expected[name])
        layer = layer.to("cpu")
        assert layer.layout != CUDA_LAYOUT
        assert torch.equal(layer.dequantize(torch.float32), weight)


@pytest.mark.parametrize("count", [1, 18, 32])
def test_columns_are_rounded_as_on_the_cpu(count):
    arguments = random_columns(count, LONG)
    expected = by_reference(*arguments)
    there = [a.to("cuda") if isinstance(a, Tensor) else a for a in arguments]
    errors, codes = torch.empty_like(there[0]), torch.empty_like(there[0], dtype=torch.uint8)
    torch.ops.qaig.gptq_columns(there[0], errors, codes, *there[1:])
    assert same((there[0].cpu(), errors.cpu(), codes.cpu()), expected)


def test_results_are_the_same_every_time():
    layer = layer_on_gpu(3, 64, out_features=WIDE, in_features=WIDE, dtype=torch.bfloat16)
    x = torch.randn(5, WIDE, device="cuda").bfloat16()
    first = layer(x)
    assert all(torch.equal(layer(x), first) for _ in range(CALLS))


@pytest.mark.parametrize("rows", [1, 16, 100])
def test_graphs_replay(rows):
    """With new inputs, many times, and between calls outside of the graph."""
    layers = [layer_on_gpu(bits, 64, False, WIDE, WIDE, dtype=torch.float16) for bits in BITS]
    x = torch.randn(rows, WIDE, device="cuda").half()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for layer in layers:
            layer(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = [layer(x) for layer in layers]
    for _ in range(20):
        x.normal_()
        graph.replay()
        for layer, y in zip(layers, captured, strict=True):
            assert torch.equal(y, layer(x))


def test_streams_at_the_same_time():
    layer = layer_on_gpu(4, 128, False, WIDE, WIDE, dtype=torch.float16)
    x = torch.randn(4, WIDE, device="cuda").half()
    expected = layer(x)
    torch.cuda.synchronize()
    results, streams = [], [torch.cuda.Stream() for _ in range(4)]
    for _ in range(50):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(layer(x))
    torch.cuda.synchronize()
    assert all(torch.equal(result, expected) for result in results)


def test_many_layers_of_one_input():
    layers = [
        layer_on_gpu(2, 32, False, 300, 1024, dtype=torch.bfloat16),
        layer_on_gpu(3, 128, True, 4096, 1024, dtype=torch.bfloat16, bias=False),
        layer_on_gpu(8, -1, False, 17, 1024, dtype=torch.float16),
        layer_on_gpu(4, 64, False, 1024, 1024, dtype=torch.bfloat16),
    ] * 3
    x = torch.randn(3, 1024, device="cuda").bfloat16()
    results = torch.ops.qaig.linear_many(
        x,
        [layer.weight_packed for layer in layers],
        [layer.weight_scale for layer in layers],
        [layer.weight_zero_point for layer in layers],
        [layer.bias for layer in layers],
        [0] * len(layers),
        [0] * len(layers),
        [layer.out_features for layer in layers],
        [layer.bits for layer in layers],
        [layer.group_size for layer in layers],
        16,
        CUDA_LAYOUT,
    )
    for y, layer in zip(results, layers, strict=True):
        assert error(y, exact(layer, x)) < ROUNDING[torch.bfloat16]


def test_compiles_without_a_break():
    layer = layer_on_gpu(3, 64, dtype=torch.float16, out_features=256, in_features=512)
    x = torch.randn(3, 512, device="cuda").half()
    assert torch.equal(torch.compile(layer, fullgraph=True)(x), layer(x))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_every_gpu():
    for index in reversed(range(torch.cuda.device_count())):
        layer = layer_on_gpu(3, 32, dtype=torch.float16, device=f"cuda:{index}")
        check(layer, torch.randn(3, 96, device=f"cuda:{index}").half())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_weight_on_another_gpu_is_refused():
    layer = layer_on_gpu(3, 32, dtype=torch.float16, device="cuda:1")
    with pytest.raises((RuntimeError, ValueError), match=r"packed is .* move both to one device"):
        layer(torch.randn(3, 96, device="cuda:0").half())
