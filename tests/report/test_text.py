"""Plain text for terminals: bars in a line, columns, and figures with their interval."""

import math

from transformers_qaig.report.text import aligned, labelled, sparkline, with_interval


def test_a_sparkline_has_a_bar_for_each_value() -> None:
    assert sparkline([0.0, 0.5, 1.0, math.nan]) == "▁▅█·"
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([]) == ""


def test_columns_are_aligned() -> None:
    assert aligned([("a", "bb", ""), ("ccc", "d", "e")]) == "a    bb\nccc   d  e"


def test_a_figure_without_bounds_stands_alone() -> None:
    assert with_interval([0.81, None, None], ".1f") == "0.8"
    assert with_interval([0.81, 0.7, 0.9], ".1f") == "0.8 (0.7 to 0.9)"


def test_values_stand_in_one_column() -> None:
    assert labelled([("a", "1"), ("longer", "2")]) == "a       1\nlonger  2"
    assert labelled([]) == ""
