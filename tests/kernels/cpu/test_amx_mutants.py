"""Deliberate bugs in the kernel for AMX, each of which the emulated tiles or a comparison must catch."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.kernels.cpu.conftest import CSRC, compile_harness
from tests.kernels.cpu.harness import Call, Harness
from tests.nn.cpu_layers import random_layer

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

MUTANTS = {
    "wrong rows of a tile": ("gemm.cpp", "is_codes ? kStepUnits * kUnitQuads : rows", "rows"),
    "wrong bytes of a row": ("gemm.cpp", ": rows, kRowBytes);", ": rows, is_codes ? kRowBytes : kRowBytes / 2);"),
    "palette not set": ("tiles.h", "uint8_t palette = 1", "uint8_t palette = 0"),
    "never configured": ("tiles.h", "{ configure(config); }", "{ static_cast<void>(config); }"),
    "configured once, released after": (
        "gemm.cpp", "const Configured configured(",
        "static const Configured configured(",
    ),
    "tiles of another number of rows": ("gemm.cpp", "(tile_config(a.batch_rows))", "(tile_config(8))"),
    "wrong stride of x": ("gemm.cpp", "stride = planes * plane_words * 4", "stride = plane_words * 4"),
    "wrong stride of codes": (
        "gemm.cpp", "load<4>(panel.codes[0], kRowBytes)",
        "load<4>(panel.codes[0], 2 * kRowBytes)",
    ),
    "missing zero of the sums": ("gemm.cpp", "    clear<1>();\n", ""),
    "missing zeros of half a step": ("gemm.cpp", "if (segment.units % kStepUnits)", "if (false)"),
    "missing zero point": ("gemm.cpp", "product - panel.zero[c][r] * x_sum[m]", "product"),
    "codes of the segment before": (
        "gemm.cpp", "        load_codes(panel, steps);\n",
        "        if (i == 0) load_codes(panel, steps);\n",
    ),
    "second half left out": ("gemm.cpp", "multiply<1, 3, 7>();", ""),
    "tiles of codes exchanged": ("gemm.cpp", "multiply<0, 3, 5>();", "multiply<0, 3, 7>();"),
    "x and codes exchanged": ("gemm.cpp", "multiply<0, 2, 4>();", "multiply<0, 4, 2>();"),
    "planes exchanged": ("gemm.cpp", "first[r] * 256 + second[r]", "second[r] * 256 + first[r]"),
    "third plane left out": ("gemm.cpp", "part < parts(planes)", "part < 1"),
}  # fmt: skip


def calls() -> list[Call]:
    """One tile and three, whole and half steps, one to three planes, batches of different numbers of rows."""
    cases = []
    for bits, group_size, rows, dtype, activation_bits in (
        (4, 32, 9, torch.float32, 16), (4, 128, 16, torch.bfloat16, 16), (3, 96, 21, torch.float16, 8),
        (8, 128, 40, torch.float32, 16), (2, 288, 16, torch.bfloat16, 8),
    ):  # fmt: skip
        channels = 384 if group_size == 128 else 288
        layer = random_layer(bits, group_size, False, 40, channels, activation_bits=activation_bits)
        cases.append(Call([(layer, torch.randn(rows, channels).to(dtype))]))
    return cases


def is_right(harness: Harness, folder: Path) -> bool:
    """Whether the kernel's results are those of AVX2."""
    try:
        results = harness.run(calls(), folder)
    except AssertionError as error:
        if "AMX: " in str(error) or "status -" in str(error):
            return False
        raise
    return all(torch.equal(found["amx"].y[0][0], found["avx2"].y[0][0]) for found in results)


def test_the_kernel_itself_is_right(objects, tmp_path):
    assert is_right(Harness((str(objects / "harness"),)), tmp_path)


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
