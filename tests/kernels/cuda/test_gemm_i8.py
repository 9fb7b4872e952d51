"""The CUDA kernels for many rows of 8-bit activations (csrc/cuda/kernels/gemm_i8.cuh) on the emulator.

Sums of integers are exact. Rounded in float32 are each group's sum times its scale, the sum of those, and what the
token's scale and the bias make of it. All of that is far below the last place of float16 and bfloat16. So y must be the
float64 product of the rounded activations and the dequantized weight, rounded once. A few values that lie about halfway
between two of the dtype may differ. Where scales are powers of two nothing is rounded before, and none may differ.
"""

import itertools

import pytest
import torch
from torch import Tensor

from tests.kernels.cuda import gemm_cases
from tests.kernels.cuda.products import BITS, DTYPES, ROUNDING, error, exact, in_checkpoint_layout
from tools.emulator.compilation import COMPILER
from tools.emulator.weights import Weight, make_weight, random_weight
from transformers_qaig.formats import reference
from transformers_qaig.formats.hadamard import BLOCKS, Rotation, rotate

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


def check(emulator, x: Tensor, weights: list[Weight], launches: int = 1) -> list[Tensor]:
    results = emulator.matmul(x, weights, 8, launches, kernel="gemm_i8")
    for w, y in zip(weights, results, strict=True):
        expected = exact(w, x, 8)
        assert error(y, expected) < ROUNDING[x.dtype]
        assert int((y != expected.to(x.dtype)).sum()) <= 1 + y.numel() // 50
    return results


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sym", [False, True])
def test_every_width(emulator, bits, dtype, sym):
    for x, w in gemm_cases.every_width(emulator, bits, dtype, sym):
        check(emulator, x, [w])


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sweep(emulator, bits, dtype):
    for x, w in gemm_cases.sweep(emulator, bits, dtype):
        check(emulator, x, [w])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("out_features", "in_features", "group_size"), gemm_cases.RAGGED)
def test_ragged_shapes(emulator, bits, out_features, in_features, group_size):
    for dtype, rows in ((torch.float16, 19), (torch.bfloat16, 65)):
        w = random_weight(bits, out_features, in_features, group_size, dtype=dtype)
        check(emulator, torch.randn(rows, in_features).to(dtype), [w])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [32, 96, 480, -1])
@pytest.mark.parametrize("sym", [False, True])
def test_integers_are_multiplied_exactly(emulator, bits, group_size, sym):
    """Scales are powers of two, those of tokens too, so that y is rounded but once. Of 8 bits, groups of 480 and 960
    channels are added up in parts.
    """
    groups = 1 if group_size == -1 else 960 // group_size
    w = make_weight(
        torch.randint(0, 2**bits, (70, 960), dtype=torch.uint8),
        2.0 ** -torch.randint(6, 10, (70, groups)).half(),
        None if sym else torch.randint(0, 2**bits, (70, groups), dtype=torch.uint8),
        bits,
        group_size,
    )
    x = torch.randint(-127, 128, (35, 960)).half()
    x[:, 17] = 127
    (y,) = emulator.matmul(x, [w], 8, kernel="gemm_i8")
    assert torch.equal(y, exact(w, x, 8).half())


@pytest.mark.parametrize("bits", BITS)
def test_largest_sums_do_not_overflow(emulator, bits):
    """Neither the sums of integers nor those of x: exact, however many channels a group has."""
    for sign, zero in itertools.product((127, -127), (0, 2**bits - 1)):
        w = make_weight(
            torch.full((20, 11136), 2**bits - 1 - zero, dtype=torch.uint8),
            torch.full((20, 1), 2.0**-14).bfloat16(),
            torch.full((20, 1), zero, dtype=torch.uint8),
            bits,
            -1,
        )
        x = torch.full((2, 11136), sign).bfloat16()
        (y,) = emulator.matmul(x, [w], 8, kernel="gemm_i8")
        assert torch.equal(y, exact(w, x, 8).bfloat16())


def test_results_do_not_depend_on_timing(emulator):
    """Each launch leaves the semaphores as the next one needs them, too."""
    x = torch.randn(20, 1152).bfloat16()
    w = random_weight(8, 200, 1152, 128, dtype=torch.bfloat16)
    gemm_cases.check_order_does_not_matter(emulator, lambda: check(emulator, x, [w], launches=2), 3, 4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("processors", [1, 2, 5])
def test_many_layers(emulator, bits, processors):
    """Blocks that have parts of several layers and output tiles."""
    emulator.set_processors(processors)
    weights = [
        random_weight(bits, 64, 512, 32, bias=torch.float16),
        random_weight(bits, 200, 512, 128, sym=True, dtype=torch.bfloat16),
        random_weight(bits, 17, 512, -1, bias=torch.float32),
        random_weight(bits, 300, 512, 64, dtype=torch.bfloat16, bias=torch.bfloat16),
    ]
    check(emulator, torch.randn(66, 512).half(), weights, launches=2)
    check(emulator, torch.randn(20, 512).bfloat16(), weights[2:3] * 8)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("in_features", "group_size", "sym"), [(96, 32, True), (114, 57, False)])
def test_rows_that_are_not_rounded(emulator, bits, dtype, in_features, group_size, sym):
    """Infinities and NaNs go through as in torch, and values beyond 1e30 are multiplied as they are. They reach no
    other row, be it of the same tile.
    """
    w = random_weight(bits, 70, in_features, group_size, sym, dtype, bias=dtype)
    x = torch.randn(40, in_features).to(dtype)
    x[3, 40], x[9, 2], x[16, 7], x[39, 0], x[39, 1] = torch.inf, -torch.inf, torch.nan, torch.inf, -torch.inf
    broken = [3, 9, 16, 39]
    if dtype == torch.bfloat16:
        x[20] *= 1e31
        x[21, 5] = -3e30
        broken += [20, 21]
    emulator.set_processors(2)
    (y,) = emulator.matmul(x, [w], 8, kernel="gemm_i8")
    whole = [i for i in range(40) if i not in broken]
    assert error(y[whole], exact(w, x[whole], 8)) < ROUNDING[dtype]
    expected = torch.nn.functional.linear(
        x.float(), reference.dequantize(in_checkpoint_layout(w), torch.float32), w.bias.float()
    )
    for i in broken[:4]:
        assert torch.equal(y[i].isnan(), expected[i].isnan())
        assert torch.equal(y[i].clamp(-1, 1)[y[i].isinf()], expected[i].clamp(-1, 1)[expected[i].isinf()])
        assert not y[i].isfinite().any()
    for i in broken[4:]:
        assert error(y[i], exact(w, x[i : i + 1])[0]) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", [32, 20])
def test_a_rotated_input(emulator, dtype, group_size):
    w = random_weight(4, 70, 160, group_size, dtype=dtype)
    x = torch.randn(20, 160).to(dtype)
    x[5, 3], x[6, 9] = torch.inf, torch.nan
    (y,) = emulator.matmul(x, [w], 8, kernel="gemm_i8", rotation=(32, 7))
    rotated = rotate(x, Rotation(32, 7))
    whole = [i for i in range(20) if i not in (5, 6)]
    assert error(y[whole], exact(w, rotated[whole], 8)) < ROUNDING[dtype]
    expected = torch.nn.functional.linear(rotated[5:7], reference.dequantize(in_checkpoint_layout(w), torch.float32))
    assert torch.equal(y[5:7].isnan(), expected.isnan())
    assert torch.equal(y[5:7].isinf(), expected.isinf())


def in_slot_order(rows: Tensor) -> Tensor:
    """Rows of bytes, stored within those of a 16-bit type, in slot order."""
    slots = rows.shape[1]
    stored = rows.view(torch.int8).view(len(rows), 2 * slots)[:, :slots].reshape(len(rows), -1, 4, 2, 2, 2, 2)
    return stored.permute(0, 1, 3, 2, 4, 6, 5).reshape(len(rows), slots)


@pytest.mark.parametrize("rotation", [(0, 0), *((block, 2**63 - 5) for block in BLOCKS)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("in_features", "group_size"), [(2304, 128), (512, 8), (256, -1), (2560, 20)])
def test_bytes_are_the_reference_to_the_bit(emulator, rotation, dtype, in_features, group_size):
    x = (torch.randn(4, in_features) * torch.tensor([1.0, 1e-7, 30.0, 0.0])[:, None]).to(dtype)
    stored, scale = emulator.quantize_activations(x, group_size, 8, rotation, as_bytes=True)
    channels = in_features if group_size == -1 else group_size
    padded = -(-channels // 32) * 32
    integers = in_slot_order(stored)
    slots = integers[:, : in_features // channels * padded].view(4, -1, padded)
    rounded = (slots[..., :channels].float() * scale[:, None, None]).reshape(4, in_features)
    assert torch.equal(rounded, reference.round_activations(rotate(x, Rotation(*rotation)) if rotation[0] else x))
    assert not slots[..., channels:].any()
    assert not integers[:, slots.shape[1] * padded :].any()


def test_bytes_of_odd_and_misaligned_rows(emulator):
    for shape, offset, group_size in (((3, 57), 0, -1), ((3, 114), 0, 57), ((2, 64), 1, 32), ((5, 1), 0, -1)):
        x = torch.randn(shape[0] * shape[1] + offset).half()[offset:].view(shape)
        stored, scale = emulator.quantize_activations(x, group_size, 8, as_bytes=True)
        channels = shape[1] if group_size == -1 else group_size
        slots = in_slot_order(stored)[:, : shape[1] // channels * -(-channels // 32) * 32]
        rounded = slots.view(shape[0], shape[1] // channels, -1)[..., :channels].reshape(shape) * scale[:, None]
        assert torch.equal(rounded, reference.round_activations(x))


def test_rows_that_are_no_bytes(emulator):
    """They are stored as they are, in slot order."""
    x = torch.randn(4, 100).bfloat16()
    x[1, 40], x[2, 50], x[3, 60] = torch.inf, torch.nan, 2e30
    stored, scale = emulator.quantize_activations(x, 50, 8, as_bytes=True)
    assert scale[0] == x[0].float().abs().max() / 127
    torch.testing.assert_close(scale[1:], torch.tensor([0, torch.nan, 0]), equal_nan=True)
    slots = stored[1:].view(3, 2, 64)
    torch.testing.assert_close(slots[..., :50].reshape(3, 100), x[1:], rtol=0, atol=0, equal_nan=True)
    assert not slots[..., 50:].any()


def test_launches_that_are_refused(emulator):
    x = torch.randn(20, 64).half()
    with pytest.raises(RuntimeError, match="status 1"):
        emulator.matmul(x, [random_weight(4, 64, 64), random_weight(3, 64, 64)], 8, kernel="gemm_i8")
    with pytest.raises(RuntimeError, match="status 1"):  # no bytes, and no scales of tokens
        emulator.matmul(x, [random_weight(4, 64, 64)], 16, kernel="gemm_i8")
    with pytest.raises(RuntimeError, match="status 1"):
        emulator.quantize_activations(x, -1, 16, as_bytes=True)
    emulator.set_capability(75)
    try:
        with pytest.raises(RuntimeError, match="status 2"):
            emulator.matmul(x, [random_weight(4, 64, 64)], 8, kernel="gemm_i8")
    finally:
        emulator.set_capability(86)
