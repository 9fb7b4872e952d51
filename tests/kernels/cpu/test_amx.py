"""The kernels for AMX: emulated tiles do what the processor's do, and deliberate bugs are caught."""

import platform
import shutil
from pathlib import Path

import pytest
import torch

from tests.kernels.cpu.conftest import CSRC, compile_harness
from tests.kernels.cpu.harness import Call, Harness
from tests.nn.cpu_layers import exact, random_layer
from tests.nn.rounding_errors import ROUNDING, error

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

MUTANTS = {
    "wrong rows of a tile": ("block.h", "tile < 6 ? rows : kMaxTileRows", "rows"),
    "wrong bytes of a row": ("block.h", "kMaxTileRows, kRowBytes);", "kMaxTileRows, tile < 6 ? 64 : 32);"),
    "palette not set": ("tiles.h", "uint8_t palette = 1", "uint8_t palette = 0"),
    "never configured": ("tiles.h", "{ configure(config); }", "{ static_cast<void>(config); }"),
    "configured once, released after": (
        "block.h", "const Configured configured(",
        "static const Configured configured(",
    ),
    "tiles of another number of rows": ("block.h", "(tile_config(R_))", "(tile_config(8))"),
    "wrong stride of x": ("gemm_int8.h", "t * kRowBytes, planes * plane_bytes,", "t * kRowBytes, plane_bytes,"),
    "wrong stride of codes": ("block.h", "load<6>(weights, kRowBytes)", "load<6>(weights, 2 * kRowBytes)"),
    "missing zeros of the sums": ("gemm_int8.h", "        clear<1>();\n", ""),
    "missing zeros of half a step": ("codes.h", "if (units % Weights::kStepUnits)", "if (false)"),
    "missing zero point": ("codes.h", "subtract_bytes(codes, byte_zero));", "codes);"),
    "missing rest of a zero point": ("gemm_int8.h", "if constexpr (HasZero)", "if constexpr (false)"),
    "weights of the segment before": ("block.h", "(before - steps_[first].before) *", "0 *"),
    "second tile left out": ("block.h", "    Multiply::template into<1, 4, 7>();\n", ""),
    "tiles of weights exchanged": ("block.h", "into<3, 5, 7>();", "into<3, 5, 6>();"),
    "x and weights exchanged": ("block.h", "into<0, 4, 6>();", "into<0, 6, 4>();"),
    "planes exchanged": (
        "gemm_int8.h", "combine_planes(read(at), read(at + kPlane))",
        "combine_planes(read(at + kPlane), read(at))",
    ),
    "third plane left out": ("gemm_int8.h", "            multiply<Batches, 1, 1, 0>(b, one, planes, 1, out);\n", ""),
    "pending sums left out": ("block.h", "            kernel_.finish();\n", ""),
    "pending sums added twice": ("gemm_int8.h", "        pending_[current_].batches = 0;\n", ""),
    "pending sums overwritten": ("gemm_int8.h", "sums_.data() + (1 - current_) * kPendingSegments", "sums_.data()"),
    "sums of bfloat16 not kept": ("gemm_bf16.h", "load<2>(out + batch_stride, kRowBytes);", "clear<2>();"),
    "bfloat16 in another order": (
        "lanes.h", "l[i] | static_cast<uint32_t>(h[i]) << 16",
        "h[i] | static_cast<uint32_t>(l[i]) << 16",
    ),
    "weights without scale": ("codes.h", "times(first, scale), times(second, scale)", "first, times(second, scale)"),
    "x of bfloat16 not padded": ("activations.cpp", "out + kUnitSlots, uint16_t{0}", "out, uint16_t{0}"),
}  # fmt: skip


def calls() -> list[Call]:
    """One tile and three, whole and half steps, one to three planes, batches of different numbers of rows."""
    cases = []
    for bits, group_size, rows, dtype, activation_bits in (
        (4, 32, 9, torch.float32, 16), (4, 128, 16, torch.bfloat16, 16), (3, 96, 21, torch.float16, 8),
        (8, 128, 40, torch.float32, 16), (2, 288, 16, torch.bfloat16, 8), (4, 128, 40, torch.float16, 16),
        (4, 128, 64, torch.bfloat16, 16), (8, 72, 50, torch.bfloat16, 16), (3, 48, 97, torch.bfloat16, 16),
        (4, 64, 70, torch.bfloat16, 8), (8, 128, 33, torch.bfloat16, 8),
    ):  # fmt: skip
        channels = 768 if group_size in (64, 128) else 288
        layer = random_layer(bits, group_size, False, 40, channels, activation_bits=activation_bits)
        cases.append(Call([(layer, torch.randn(rows, channels).to(dtype))]))
    return cases


def is_right(harness: Harness, folder: Path) -> bool:
    """Whether integers give what AVX2 gives, and bfloat16 comes as near to the truth as it must."""
    made = calls()
    try:
        results = harness.run(made, folder)
    except AssertionError as error_:
        if "AMX: " in str(error_) or "status -" in str(error_):
            return False
        raise
    return all(_agree(call, found) for call, found in zip(made, results, strict=True))


def _agree(call: Call, found) -> bool:
    """In each layout. With several blocks of segments, which only the CPU layout has, a buffer holds old weights."""
    ((layer, x),) = call.layers
    layouts = [(ours[0], expected[0]) for ours, expected in zip(found["amx"].y, found["avx2"].y, strict=True)]
    if x.dtype == torch.bfloat16 and layer.activation_bits == 16 and len(x) >= 48:
        return all(error(y, exact(layer, x)) < ROUNDING[x.dtype] for y, _ in layouts)
    return all(torch.equal(y, expected) for y, expected in layouts)


def test_the_kernel_itself_is_right(objects, tmp_path):
    assert is_right(Harness((str(objects / "harness"),)), tmp_path)


def test_emulated_tiles_do_what_real_ones_do(objects, tmp_path):
    """To the bit, where there is such a processor."""
    (tmp_path / "real").mkdir()
    real = compile_harness(CSRC, tmp_path / "real", flags=())
    if platform.machine() != "x86_64" or "amx" not in real.isas():
        pytest.skip("needs a processor with AMX")
    made = calls()
    for call, one, other in zip(
        made, real.run(made, tmp_path), Harness((str(objects / "harness"),)).run(made, tmp_path), strict=True
    ):
        for ours, emulated in zip(one["amx"].y, other["amx"].y, strict=True):
            assert torch.equal(ours[0], emulated[0]), call.layers[0]


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bug_is_caught(name, objects, tmp_path):
    file, old, new = MUTANTS[name]
    shutil.copytree(CSRC, tmp_path / "csrc")
    shutil.copytree(objects, tmp_path / "objects")
    source = tmp_path / "csrc" / "cpu" / "amx" / file
    text = source.read_text()
    assert old in text, f"{file} has no more {old!r}: change this test, too"
    source.write_text(text.replace(old, new))
    harness = compile_harness(tmp_path / "csrc", tmp_path / "objects", changed=("cpu/amx/",))
    assert not is_right(harness, tmp_path)
