"""Sizes of a model's parts: small ones share a row, and what is packed says its widths."""

from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.plan.coverage import BLOCKS, FILE_HEADERS, Coverage, PartSize
from transformers_qaig.report.sizes import PartRow, part_rows

HEAD = {"lm_head": WeightScheme(8, 32)}
PLAN = {"layers.0.up": WeightScheme(4, 32), "layers.0.down": WeightScheme(3, 32), **HEAD}


def coverage() -> Coverage:
    parts = {
        BLOCKS: PartSize(800_000, 8),
        "lm_head": PartSize(80_000, 40_000),
        "lm_head_norm": PartSize(80, 80),
        "norm": PartSize(160, 160),
        "empty": PartSize(0, 0),
        FILE_HEADERS: PartSize(8, 24),
    }
    return Coverage(stored_bits=200_000, parts=parts, outside_plan=HEAD)


def test_small_parts_share_a_row_and_the_whole_is_last() -> None:
    rows = {row.name: row for row in part_rows(coverage(), PLAN)}
    assert list(rows) == [BLOCKS, "lm_head", FILE_HEADERS, "2 small parts", "whole model"]
    assert rows["2 small parts"].size == PartSize(240, 240)
    assert rows["whole model"].size == PartSize(880_248, 240_272)
    assert rows[BLOCKS].bits == (3, 4)
    assert rows["lm_head"].bits == (8,)


def test_every_part_has_a_row_on_request() -> None:
    names = [row.name for row in part_rows(coverage(), PLAN, every_part=True)]
    assert names == [BLOCKS, "lm_head", "norm", "lm_head_norm", FILE_HEADERS, "whole model"]


def test_the_text_of_a_row() -> None:
    cells = [row.cells() for row in part_rows(coverage(), PLAN)]
    assert cells[0] == (BLOCKS, "3, 4", "100 kB", "25 kB", "4.00")
    assert cells[2] == (FILE_HEADERS, "more tensors", "1 bytes", "3 bytes", "")
    assert cells[3] == ("2 small parts", "not packed", "30 bytes", "30 bytes", "")
    assert cells[4] == ("whole model", "", "110 kB", "30.03 kB", "3.66")
    assert PartRow("tower", (), PartSize(80, 40)).cells()[-1] == ""


def test_a_part_has_the_widths_below_it_and_not_those_of_a_longer_name() -> None:
    parts = {name: PartSize(80, 40) for name in ("tower", "tower_2")}
    outside = {"tower_2.q": WeightScheme(5, 32)}
    rows = part_rows(Coverage(parts=parts, outside_plan=outside), outside)
    assert [(row.name, row.bits) for row in rows[:2]] == [("tower", ()), ("tower_2", (5,))]
