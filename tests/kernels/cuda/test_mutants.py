"""Deliberate bugs in the kernels, each of which the emulator or a comparison must catch."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from tests import seeds
from tests.kernels.cuda.gptq_cases import by_reference, random_columns, same
from tests.kernels.cuda.products import ROUNDING, error, exact
from tools.emulator import emulated
from tools.emulator.emulated import make_weight, random_weight

pytestmark = [pytest.mark.slow, pytest.mark.skipif(emulated.COMPILER is None, reason="no C++ compiler")]

WRONG, UNSEEN = "wrong result", "without fences and barriers between them"
ACCUMULATORS, MAINLOOP, ACTIVATIONS = "accumulators.cuh", "gemm_mainloop.cuh", "quantize_activations.cu"
# (name, file, what is replaced, by what, what is found)
SPLIT_K = [
    ("last block too early", ACCUMULATORS, "static_cast<unsigned>(last - first)",
     "static_cast<unsigned>(last - first - 1)", f"{WRONG}|semaphores|no thread of this launch"),
    ("semaphores left as they are", ACCUMULATORS, "store_global(semaphore, 0u);", "", "semaphores"),
    ("workspace of another part", ACCUMULATORS, "(block == first ? 1 : 0)", "0", f"{WRONG}|{UNSEEN}|no thread of this"),
    ("missing fence of the writers", ACCUMULATORS, "        memory_fence();\n        before", "        before", UNSEEN),
    ("fence before the writers' barrier", ACCUMULATORS,
     "    warp_barrier();\n    unsigned before = 0;\n    if (lane == 0) {\n        memory_fence();\n",
     "    memory_fence();\n    warp_barrier();\n    unsigned before = 0;\n    if (lane == 0) {\n", UNSEEN),
    ("missing fence of the reader", ACCUMULATORS, "        memory_fence();\n        store", "        store", UNSEEN),
    ("missing barrier of the reader", ACCUMULATORS, "    }\n    warp_barrier();\n    sums = {};",
     "    }\n    sums = {};",
     UNSEEN),
]  # fmt: skip
GEMV = [
    ("nothing", ACCUMULATORS, "sums = {};", "sums = {};", ""),
    ("missing wait", "gemv.cuh", "wait_copies<kStages - 2>();", "", "before its copy was waited for"),
    ("wait off by one", "gemv.cuh", "wait_copies<kStages - 2>", "wait_copies<kStages - 1>", "copy was waited for"),
    ("copy into the stage in use", "gemv.cuh", "stage == 0 ? kStages - 1 : stage - 1", "stage", "copy was waited for"),
    ("missing barrier", "gemv.cuh", "            block_barrier();", "", "without a barrier|before it is written"),
    ("divergent barrier", "gemv.cuh", "            block_barrier();", "if (g < 4) block_barrier();",
     "deadlock|meet|before it is written|without a barrier"),
    ("missing barrier of the warp", "gemv.cuh", "                warp_barrier();", "",
     "without a barrier|before it is written"),
    ("swapped halves of x", "gemv.cuh", "word_of(of, 2 * step), word_of(of, 2 * step + 1)",
     "word_of(of, 2 * step + 1), word_of(of, 2 * step)", WRONG),
    ("zero of the wrong row", "gemv.cuh", "zero[j % 2])", "zero[j / 2])", WRONG),
    ("zero of the wrong row tile", "gemv.cuh", "r % 2 * 2 + 1)", "r % 2 * 2)", WRONG),
    ("scale of the wrong row", "gemv.cuh", "second = high_float", "second = low_float", WRONG),
    ("scale of the wrong group", "gemv.cuh", "products, word_of(scale[1], r)",
     "products, word_of(scale[0], r)", WRONG),
    ("groups of the wrong row block", "gemv.cuh", "(p.row_block) * groups", "(0) * groups", WRONG),
    ("zeros in the place of scales", "work_item.cuh", "at % kZeros * 16", "(at + 1) % kZeros * 16", WRONG),
    ("second group not copied", "gemv.cuh", "(unit == 0 || !one_group(p.tile, group))", "unit == 0",
     f"before it is written|{WRONG}"),
    ("code at the wrong bit", "layout.h", "p * bits % 16;", "(p + 1) * bits % 16;", WRONG),
    ("wrong magic", "unpack.cuh", "shift == 4 ? twice(0x6380)", "shift == 4 ? twice(0x6300)", WRONG),
    ("scale within the multiply-add", "unpack.cuh", "inverse_power(F16, int shift) { return twice(",
     "inverse_power(F16, int shift) { return 0x11 + twice(", f"would be rounded|{WRONG}"),
    ("wrong order of words", "gemv.cuh", "words[4 * c] = v.x, words[4 * c + 1] = v.y",
     "words[4 * c] = v.y, words[4 * c + 1] = v.x", WRONG),
    ("rows beyond the last", "gemv.cuh", "8 * i + g < rows ? l.x_slots - 8 * t : 0", "l.x_slots - 8 * t",
     "a load outside of every buffer"),
    ("channels beyond the last", "gemv.cuh", "l.x_slots - 8 * t : 0", "(1 << 30) : 0",
     f"a load outside of every buffer|{WRONG}"),
    ("misaligned load", "gemv.cuh", "g * l.x_stride + 8 * t;", "g * l.x_stride + 4 * t;", "misaligned"),
    ("output beyond the last row", ACCUMULATORS, "if (n < l.out_features && m", "if (m", "outside of every buffer"),
    ("bias of the wrong row", ACCUMULATORS, "bias[e / 2]", "bias[0]", WRONG),
    ("too much shared memory", "geometry.h", "bits == 4 ? 3 :", "bits == 4 ? 64 :", "refused"),
    ("a part taken for the whole", "gemv.cuh", "from_start && to == row_end", "from_start", f"{WRONG}|semaphores"),
]  # fmt: skip
GEMM_F16 = [
    ("nothing", MAINLOOP, "Product::Accumulators sums = {};", "Product::Accumulators sums = {};", ""),
    ("missing wait", MAINLOOP, "wait_copies<kStages - 2>();", "", "before its copy was waited for"),
    ("wait off by one", MAINLOOP, "wait_copies<kStages - 2>", "wait_copies<kStages - 1>", "copy was waited for"),
    ("missing barrier before a stage is overwritten", MAINLOOP, "                block_barrier();\n", "",
     "without a barrier|copy was waited for|before it is written"),
    ("missing barrier between layers", MAINLOOP, "block_barrier();  // the stages may", "//", "race"),
    ("copy into the stage in use", MAINLOOP, "stage == 0 ? kStages - 1 : stage - 1", "stage",
     "while a copy|copy was waited for|without a barrier"),
    ("swizzle of the writer only", "k_step.cuh", "x + swizzled<kChunks>(8 * part + g, chunk)",
     "x + (8 * part + g) * kChunks + chunk", WRONG),
    ("swizzle of the reader only", MAINLOOP, "swizzled<kChunks>(row, chunk);", "row * kChunks + chunk;", WRONG),
    ("swapped halves of x", "gemm_f16.cuh", "word_of(x[p], 2 * s),", "word_of(x[p], 2 * s + 1),", WRONG),
    ("x of the other unit", "gemm_f16.cuh", "4 * unit + step.t", "step.t", WRONG),
    ("zero of the wrong row", "gemm_f16.cuh", "zero[j % 2])", "zero[j / 2 % 2])", WRONG),
    ("zero of the wrong row tile", "gemm_f16.cuh", "groups.zero[unit], 2 * r + 1)", "groups.zero[unit], 1)", WRONG),
    ("zero of the first group only", "gemm_f16.cuh", "if (unit == 0 || !same)", "if (unit == 0)", WRONG),
    ("scale of the wrong row", "group_scales.cuh", "high_float(type, scale.y)", "low_float(type, scale.y)", WRONG),
    ("scale of the wrong group", "gemm_f16.cuh", "row_scales(groups.scale[0], l.scale_type)", "scales", WRONG),
    ("the group before", "group_scales.cuh", "if (unit >= units_per_group) {  // one unit", "if (false) {  //", WRONG),
    ("group of the output tile before", MAINLOOP, "group = {0, 0};", "group.advance(groups.units_per_group);",
     f"{WRONG}|outside of every buffer"),
    ("words of the other row block", MAINLOOP, "from + warp / 2 * kBlockWords", "from", WRONG),
    ("words of the other row tiles", "k_step.cuh", "words + (half * (bits / 2) + c)", "words + c", WRONG),
    ("columns beyond the last", MAINLOOP, "column + first < columns", "column + first < columns + 64",
     "a load outside of every buffer"),
    ("channels beyond the last", MAINLOOP, "slot < l.x_slots ? rows : 0", "rows",
     f"a load outside of every buffer|{WRONG}"),
    ("columns that are there left out", "k_step.cuh", "8 * part < columns", "8 * part + 32 < columns", WRONG),
    ("output beyond the last row", ACCUMULATORS, "if (n < l.out_features && m", "if (m", "outside of every buffer"),
    ("output beyond the last column", ACCUMULATORS, "n < l.out_features && m < rows)",
     "n < l.out_features && m < rows + 1)", "outside of every buffer"),
    ("workspace of another warp", MAINLOOP, "+ warp * kWarpAccumulators", "", f"{WRONG}|{UNSEEN}"),
    ("a part taken for the whole", MAINLOOP, "whole = to - step == tiles", "whole = true", f"{WRONG}|semaphores"),
]  # fmt: skip
GEMM_I8_W4 = [
    ("nothing", "gemm_i8.cuh", "sums.steps++;", "sums.steps++;", ""),
    ("missing wait", MAINLOOP, "wait_copies<kStages - 2>();", "", "before its copy was waited for"),
    ("missing barrier before a stage is overwritten", MAINLOOP, "                block_barrier();\n", "",
     "without a barrier|copy was waited for|before it is written"),
    ("sign of a byte", "unpack_bytes.cuh", "- zeros[i % 2]) ^ kSigns", "- zeros[i % 2])", WRONG),
    ("zero of the wrong row", "unpack_bytes.cuh", "- zeros[i % 2]", "- zeros[i / 2]", WRONG),
    ("order of the bytes of x", "layout.h", "e % 2 * 2 + e / 2 % 2", "e % 4", WRONG),
    ("x of the other unit", "gemm_i8.cuh", "word_of(x[i], 2 * unit)", "word_of(x[i], 0)", WRONG),
    ("a group ends one step late", "group_scales.cuh", "p.unit + 2 >= units_per_group",
     "p.unit + 1 >= units_per_group", WRONG),
    ("groups of one unit do not end", "group_scales.cuh", ": units_per_group == 1;", ": false;", WRONG),
    ("scale of the wrong group", "gemm_i8.cuh", "groups, 0, l.scale_type", "groups, 1, l.scale_type", WRONG),
    ("sums that are added twice", "gemm_i8.cuh", "        sums.clear(part, kChunkParts);\n", "", WRONG),
    ("the last sums left out", "gemm_i8.cuh", "groups.ends || step.last ||", "", WRONG),
    ("rows that are no integers", "gemm_i8.cuh", "== kNotQuantized", "< kNotQuantized", WRONG),
    ("NaNs forgotten", ACTIVATIONS, "largest > kInfinity ? float_of(largest)", "largest > kInfinity ? 1.0f", WRONG),
]  # fmt: skip
GEMM_I8_W8 = [
    ("nothing", "gemm_i8.cuh", "sums.steps++;", "sums.steps++;", ""),
    ("sign of a byte", "unpack_bytes.cuh", "0x6240u) ^ kSigns", "0x6240u)", WRONG),
    ("wrong zero correction", "gemm_i8.cuh", "(128 - static_cast<int>", "(127 - static_cast<int>", WRONG),
    ("zero correction of the wrong row", "gemm_i8.cuh", "missing[row]", "missing[0]", WRONG),
    ("sums of x of the wrong row", "gemm_i8.cuh", "shuffle(sum, 8 * t + 4)", "shuffle(sum, 8 * t)", WRONG),
    ("sums of x of half the lanes", "gemm_i8.cuh", "sum += shuffle_xor(sum, 2);", "", WRONG),
    ("sums of x that are kept", "gemm_i8.cuh", "            x_sums[part + i] = 0;\n", "", WRONG),
    ("missing segment", "gemm_i8.cuh", "sums.steps == kSegmentSteps", "false", WRONG),
    ("segments too long", "gemm_i8.cuh", "bits == 8 ? 4 :", "bits == 8 ? 8 :", WRONG),
]  # fmt: skip
GEMM_I8_W3 = [
    ("bits of the last pair", "unpack_bytes.cuh", "15 - at - i", "15 - at", WRONG),
    ("pair at the wrong bit", "unpack_bytes.cuh", "0x00070007u << at", "0x00070007u << 0", WRONG),
]  # fmt: skip
GPTQ_COLUMNS = [
    ("nothing", "gptq_columns.cu", "block_barrier();", "block_barrier();", ""),
    ("missing barrier", "gptq_columns.cu", "    block_barrier();", "", "without a barrier|before it is written"),
    ("the next column forgotten", "gptq_columns.cu", "int k = j + 1;", "int k = j + 2;", WRONG),
    ("another column's factor", "gptq_columns.cu", "factor + j * kMaxGptqColumns + k)",
     "factor + k * kMaxGptqColumns + j)", f"{WRONG}|before it is written"),
    ("zero point forgotten", "gptq_columns.cu", "c.max_code) - zero;", "c.max_code);", WRONG),
    ("step in the place of scale", "gptq_columns.cu", "load_float(c.scale, ",
     "load_float(c.step, ", WRONG),
    ("rows beyond the last", "gptq_columns.cu", "at >= c.size", "at > c.size", f"outside of every buffer|{WRONG}"),
    ("columns beyond the last", "gptq_columns.cu", "        if (j < c.count) {", "        {",
     f"outside of every buffer|before it is written|{WRONG}"),
]  # fmt: skip
LISTS = {
    "gemv": GEMV + SPLIT_K,
    "gemm_f16": GEMM_F16 + SPLIT_K,
    "gemm_i8_w4": GEMM_I8_W4,
    "gemm_i8_w8": GEMM_I8_W8,
    "gemm_i8_w3": GEMM_I8_W3,
    "gptq_columns": GPTQ_COLUMNS,
}
MUTANTS = [(kernel, *mutant) for kernel, mutants in LISTS.items() for mutant in mutants]
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
    shutil.copytree(emulated.CSRC / "cuda", folder / "cuda")
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


@pytest.mark.parametrize(
    ("kernel", "file", "old", "new", "found"),
    [(m[0], *m[2:]) for m in MUTANTS],
    ids=[f"{m[0]}: {m[1]}" for m in MUTANTS],
)
def test_a_bug_is_caught(tmp_path, monkeypatch, kernel, file, old, new, found):
    monkeypatch.setenv("QAIG_CACHE", str(tmp_path))
    said = verdict(build(tmp_path / "csrc", kernel, file, old, new), kernel)
    print(said)
    assert re.search(found, said) if found else said == ""
