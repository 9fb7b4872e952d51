"""Deliberate bugs in the kernels, each of which the emulator or a comparison must catch."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from tests import seeds
from tests.kernels.cuda.gptq_cases import by_reference, random_columns, same
from tests.kernels.cuda.mutants import MUTANTS, WRONG
from tests.kernels.cuda.products import ROUNDING, error, exact
from tools.emulator import emulated
from tools.emulator.compilation import COMPILER, CSRC
from tools.emulator.weights import make_weight, random_weight

pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")]

# The kernel that a list of bugs is put into: its name, its header, and the macro call that makes it.
KERNELS = {
    "gemv": ("qaig_gemv_w4_f16_m8", "gemv", "QAIG_GEMV_KERNEL(qaig_gemv_w4_f16_m8, F16, 4, 8)"),
    "gemm_f16": ("qaig_gemm_f16_w4_f16", "gemm_f16", "QAIG_GEMM_F16_KERNEL(qaig_gemm_f16_w4_f16, F16, 4)"),
} | {
    f"gemm_i8_w{bits}": (
        f"qaig_gemm_i8_w{bits}_f16", "gemm_i8", f"QAIG_GEMM_I8_KERNEL(qaig_gemm_i8_w{bits}_f16, F16, {bits})",
    )
    for bits in (3, 4, 8)
}  # fmt: skip


def build(folder: Path, kernel: str, file: str, old: str, new: str) -> emulated.Emulator:
    """One kernel with one change, and what prepares its x; all others do nothing."""
    shutil.copytree(CSRC / "cuda", folder / "cuda")
    (path,) = folder.rglob(file)
    source = path.read_text()
    assert old in source, f"{file} has no more {old!r}: change this test, too"
    path.write_text(source.replace(old, new))
    kernels = {
        f"qaig_gemv_{width}_{dtype}_m{rows}": "QaigMatmul"
        for width in ("w2", "w3", "w4", "w8", "mixed")
        for dtype in ("f16", "bf16")
        for rows in (8, 16)
    }
    kernels |= {
        f"qaig_{kind}_w{bits}_{dtype}": "QaigMatmul"
        for kind in ("gemm_f16", "gemm_i8")
        for bits in (2, 3, 4, 8)
        for dtype in ("f16", "bf16")
    }
    kernels |= {
        f"qaig_experts_{kind.format(dtype)}": "QaigExperts"
        for bits in (2, 3, 4, 8)
        for dtype in ("f16", "bf16")
        for kind in (f"gemv_w{bits}_{{}}_m8", f"gemv_w{bits}_{{}}_m16", f"gemm_w{bits}_{{}}")
    }
    kernels |= {f"qaig_dequantize_w{bits}": "QaigDequantize" for bits in (2, 3, 4, 8)}
    kept: list[str] = []
    if kernel.startswith("gemm_i8"):
        kept.append("quantize_activations.cu")
    else:
        kernels |= {f"qaig_quantize_activations_{dtype}": "QaigQuantizeActivations" for dtype in ("f16", "bf16")}
    if kernel == "gptq_columns":
        kept.append("gptq_columns.cu")
    else:
        kernels["qaig_gptq_columns"] = "QaigGptqColumns"
    for path in (folder / "cuda" / "kernels").glob("*.cu"):
        if path.name not in kept:
            path.unlink()
    text = '#include "cuda/device/intrinsics.cuh"\n#include "cuda/arguments.h"\n'
    if kernel in KERNELS:
        name, header, call = KERNELS[kernel]
        text += f'#include "cuda/kernels/{header}.cuh"\n{call}\n'
        del kernels[name]
    text += "".join(f'extern "C" void {other}({argument}) {{}}\n' for other, argument in kernels.items())
    (folder / "cuda" / "kernels" / "w4.cu").write_text(text)
    return emulated.build(folder)


# Rows of x, channels and multiprocessors of each attempt. With few of these a warp has several items and a block
# several output tiles, of both layers; with more, up to four blocks meet in one row block or output tile.
ATTEMPTS = {
    "gemv": [(5, 1312, 1), (5, 1312, 2), (5, 1312, 3)],
    "gemm_f16": [(70, 320, 1), (70, 1312, 2), (40, 2592, 3), (40, 2592, 8)],
    "gemm_i8": [(70, 1344, 2), (40, 1344, 3), (40, 2688, 8)],
}


def verdict(emulator: emulated.Emulator, kernel: str) -> str:
    """What is wrong with the kernels, found with a few small products; "" if nothing is."""
    if kernel == "gptq_columns":
        return verdict_on_columns(emulator)
    if kernel.startswith("gemm_i8"):
        return verdict_on_integers(emulator, int(kernel.removeprefix("gemm_i8_w")))
    for seed, (rows, in_features, processors) in enumerate(ATTEMPTS[kernel]):
        torch.manual_seed(seeds.seed(seed))
        emulator.seed(seeds.seed(seed))
        emulator.set_processors(processors)
        weights = [random_weight(4, 100 if kernel == "gemv" else 136, in_features, 32, bias=torch.float16)]
        if kernel == "gemm_f16":
            weights.append(random_weight(4, 10, in_features, -1))
        x = torch.randn(rows, in_features).half()
        try:
            results = emulator.matmul(x, weights, kernel=kernel)
        except (RuntimeError, AssertionError) as problem:
            return str(problem)
        for w, y in zip(weights, results, strict=True):
            if not error(y, exact(w, x)) < ROUNDING[torch.float16]:
                return WRONG
    return ""


def verdict_on_columns(emulator: emulated.Emulator) -> str:
    for count, size in ((32, 130), (5, 128), (9, 3)):
        arguments = random_columns(count, size)
        try:
            result = emulator.gptq_columns(*arguments)
        except RuntimeError as problem:
            return str(problem)
        if not same(result, by_reference(*arguments)):
            return WRONG
    return ""


def verdict_on_integers(emulator: emulated.Emulator, bits: int) -> str:
    """Groups of one unit, of two, of three, and one for all channels, whose sums are as large as any; rows that are not
    rounded.
    """
    for seed, (rows, in_features, processors) in enumerate(ATTEMPTS["gemm_i8"]):
        torch.manual_seed(seeds.seed(seed))
        emulator.seed(seeds.seed(seed))
        emulator.set_processors(processors)
        large = torch.full((10, in_features), 2**bits - 1, dtype=torch.uint8)
        zero = torch.zeros(10, 1, dtype=torch.uint8)
        weights = [
            random_weight(bits, 136 if g == 32 else 20, in_features, g, bias=torch.float16) for g in (32, 64, 96)
        ]
        weights.append(make_weight(large, torch.full((10, 1), 2.0**-12).half(), zero, bits, -1))
        x = torch.randn(rows, in_features).half()
        x[0], x[1, 5], x[2, 7] = 1, torch.inf, torch.nan
        try:
            results = emulator.matmul(x, weights, 8, kernel="gemm_i8")
        except (RuntimeError, AssertionError) as problem:
            return str(problem)
        for w, y in zip(weights, results, strict=True):
            expected = exact(w, x, 8)
            finite = [0, *range(3, rows)]
            if not torch.equal(y.isnan(), expected.isnan()) or not torch.equal(y.isinf(), expected.isinf()):
                return WRONG
            if not error(y[finite], expected[finite]) < ROUNDING[torch.float16]:
                return WRONG
    return ""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of objects: most files are the same in all kernels with a bug."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    ("kernel", "file", "old", "new", "found"),
    [pytest.param(m[0], *m[2:], marks=[pytest.mark.exhaustive] * (number % 2)) for number, m in enumerate(MUTANTS)],
    ids=[f"{m[0]}: {m[1]}" for m in MUTANTS],
)
def test_a_bug_is_caught(cache, tmp_path, monkeypatch, kernel, file, old, new, found):
    monkeypatch.setenv("QAIG_CACHE", str(cache))
    said = verdict(build(tmp_path / "csrc", kernel, file, old, new), kernel)
    print(said)
    assert re.search(found, said) if found else said == ""
