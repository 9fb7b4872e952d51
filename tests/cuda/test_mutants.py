"""Deliberate bugs in the decode kernels, each of which the emulator or a comparison must catch."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.cuda import emulated
from tests.cuda.emulated import random_weight
from tests.cuda.test_kernels import ROUNDING, error, exact

pytestmark = [pytest.mark.slow, pytest.mark.skipif(emulated.COMPILER is None, reason="no C++ compiler")]

WRONG = "wrong result"
# (name, file, what is replaced, by what, what is found)
MUTANTS = [
    ("nothing", "decode.h", "sums = {};", "sums = {};", ""),
    ("missing wait", "decode.h", "wait_copies<kStages - 2>();", "", "before its copy was waited for"),
    ("wait off by one", "decode.h", "wait_copies<kStages - 2>", "wait_copies<kStages - 1>", "copy was waited for"),
    ("copy into the stage in use", "decode.h", "stage == 0 ? kStages - 1 : stage - 1", "stage", "copy was waited for"),
    ("missing barrier", "decode.h", "            block_barrier();", "", "without a barrier|before it is written"),
    ("divergent barrier", "decode.h", "            block_barrier();", "if (g < 4) block_barrier();",
     "deadlock|meet|before it is written"),
    ("swapped halves of x", "decode.h", "word_of(x, 2 * step), word_of(x, 2 * step + 1)",
     "word_of(x, 2 * step + 1), word_of(x, 2 * step)", WRONG),
    ("zero of the wrong row", "decode.h", "zero[j % 2])", "zero[j / 2])", WRONG),
    ("zero of the wrong row tile", "decode.h", "r % 2 * 2 + 1)", "r % 2 * 2)", WRONG),
    ("scale of the wrong row", "decode.h", "second = high_float", "second = low_float", WRONG),
    ("scale of the wrong group", "decode.h", "products, word_of(o.scale[1], r)",
     "products, word_of(o.scale[0], r)", WRONG),
    ("code at the wrong bit", "layout.h", "p * bits % 16;", "(p + 1) * bits % 16;", WRONG),
    ("wrong magic", "unpack.h", "shift == 4 ? twice(0x6380)", "shift == 4 ? twice(0x6300)", WRONG),
    ("scale within the multiply-add", "unpack.h", "inverse_power(F16, int shift) { return twice(",
     "inverse_power(F16, int shift) { return 0x11 + twice(", f"would be rounded|{WRONG}"),
    ("wrong order of words", "decode.h", "words[4 * c] = v.x, words[4 * c + 1] = v.y",
     "words[4 * c] = v.y, words[4 * c + 1] = v.x", WRONG),
    ("rows beyond the last", "decode.h", "row < d.rows && slot", "slot", "a load outside of every buffer"),
    ("channels beyond the last", "decode.h", "&& slot < l.x_slots", "", f"a load outside of every buffer|{WRONG}"),
    ("misaligned load", "decode.h", "unit * kUnitSlots + 8 * t;", "unit * kUnitSlots + 4 * t;", "misaligned"),
    ("output beyond the last row", "decode.h", "n < l.out_features && m", "m", "outside of every buffer"),
    ("too much shared memory", "kernels.h", "bits == 4 ? 3 :", "bits == 4 ? 64 :", "refused"),
    ("last block too early", "decode.h", "static_cast<unsigned>(last - first)",
     "static_cast<unsigned>(last - first - 1)", f"{WRONG}|counters"),
    ("counters left as they are", "decode.h", "store_global(counters + row_block, 0u);", "", "counters"),
    ("a part taken for the whole", "decode.h", "from_start && to == row_end", "from_start", f"{WRONG}|counters"),
]  # fmt: skip


def build(folder: Path, file: str, old: str, new: str) -> emulated.Emulator:
    """One kernel with one change; all others do nothing."""
    shutil.copytree(emulated.CSRC / "cuda", folder)
    source = (folder / file).read_text()
    assert old in source, f"{file} has no more {old!r}: change this test, too"
    (folder / file).write_text(source.replace(old, new))
    others = [
        f"qaig_decode_{width}_{dtype}_m{rows}(QaigDecode)"
        for width in ("w2", "w3", "w4", "w8", "mixed")
        for dtype in ("f16", "bf16")
        for rows in (8, 16)
        if (width, dtype, rows) != ("w4", "f16", 8)
    ]
    others += [f"qaig_dequantize_w{bits}(QaigDequantize)" for bits in (2, 3, 4, 8)]
    others += [f"qaig_arrange_{dtype}(QaigArrange)" for dtype in ("f16", "bf16")]
    for path in folder.glob("*.cu"):
        if path.name != "launch.cu":
            path.unlink()
    kernel = '#include "decode.h"\nQAIG_DECODE_KERNEL(qaig_decode_w4_f16_m8, F16, 4, 8)\n'
    (folder / "w4.cu").write_text(kernel + "".join(f'extern "C" void {other} {{}}\n' for other in others))
    return emulated.build(folder)


def verdict(emulator: emulated.Emulator) -> str:
    """What is wrong with the kernels, found with a few small products; "" if nothing is."""
    for seed in range(3):
        torch.manual_seed(seed)
        emulator.seed(seed)
        emulator.set_processors(1 + seed)  # one: each warp has several items; more: blocks meet in row blocks
        w = random_weight(4, 100, 1312, 32, bias=torch.float16)
        x = torch.randn(5, 1312).half()
        try:
            (y,) = emulator.decode(x, [w])
        except (RuntimeError, AssertionError) as problem:
            return str(problem)
        if not error(y, exact(w, x)) < ROUNDING[torch.float16]:
            return WRONG
    return ""


@pytest.mark.parametrize(("file", "old", "new", "found"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_a_bug_is_caught(tmp_path, monkeypatch, file, old, new, found):
    monkeypatch.setenv("QAIG_CACHE", str(tmp_path))
    said = verdict(build(tmp_path / "cuda", file, old, new))
    print(said)
    assert re.search(found, said) if found else said == ""
