"""`csrc/README.md` says what is there: every file, and which kernel is launched for how many tokens."""

import re

from tests.docs.pages import ROOT, cells
from transformers_qaig.kernels.cuda import interface

PAGE = ROOT / "csrc" / "README.md"
SOURCES = (".cpp", ".h", ".cu", ".cuh")


def test_every_file_is_named_and_every_named_file_exists() -> None:
    there = {str(path.relative_to(PAGE.parent)) for path in PAGE.parent.rglob("*") if path.suffix in SOURCES}
    named = {name for row in cells(PAGE) for name in re.findall(r"`((?:ops|cpu|cuda)/[\w/]+\.\w+)`", row[0])}
    assert named == there


def test_the_limits_are_those_of_the_kernels() -> None:
    rows = [row for row in cells(PAGE) if re.fullmatch(r"\d+\.\d", row[0])]
    told = [tuple(int(cell.replace(".", "")) for cell in row) for row in rows]
    known = [(t.capability or 75, t.max_gemv_rows, t.max_gemm_f16_rows, t.max_gemm_i8_rows) for t in interface.TUNINGS]
    assert told == known


def test_headers_with_device_code_end_in_cuh() -> None:
    for path in (PAGE.parent / "cuda").rglob("*.h"):
        assert "QAIG_DEVICE" not in re.sub(r"QAIG_HOST_DEVICE", "", path.read_text()), path
