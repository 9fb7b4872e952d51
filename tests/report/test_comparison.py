"""JSON, table and picture of several models against one."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import seeds
from transformers_qaig.report.comparison import Row, as_json, plot, table
from transformers_qaig.report.statistics import AnswerStatistics, paired_ratio


def statistics(scale: float) -> AnswerStatistics:
    rng = seeds.rng()
    return AnswerStatistics(
        exact=rng.random(40) < 0.9,
        nll=rng.exponential(size=40),
        kl=scale * rng.exponential(size=40),
        agreement=rng.random(40),
        tokens=rng.integers(1, 6, 40),
        task=np.array(["count", "read"] * 20),
        conversation=np.arange(40),
    )


ROWS = [
    Row("rtn", "W2", statistics(2.0), 2.28, 8e6),
    Row("rtn", "W3", statistics(0.5), 3.28, 9e6),
    Row("fast", "W3", statistics(0.25), 3.30, 9.1e6),
]


def test_json_holds_every_figure_of_the_summary_and_the_paired_ratio() -> None:
    entries = json.loads(json.dumps(as_json(ROWS, baseline="rtn")))
    assert [entry["kl_ratio"][0] for entry in entries] == pytest.approx([1, 1, 0.5])
    assert entries[2]["kl_ratio"] == list(paired_ratio(ROWS[2].statistics, ROWS[1].statistics))
    summary = ROWS[2].statistics.summary()
    assert {name: entries[2][name] for name in summary} == summary
    assert entries[2]["tasks"]["read"]["questions"] == 20
    assert "kl_ratio" not in as_json(ROWS)[0]


def test_table_has_a_line_per_row_and_no_ratio_without_a_counterpart() -> None:
    lines = table(ROWS[1:], baseline="fast").splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {10}
    kl = ROWS[1].statistics.summary()["kl"]
    assert f"{kl['mean']:.5f} ± {kl['standard_error']:.5f}" in lines[2]
    assert table([ROWS[0], ROWS[2]], baseline="fast").splitlines()[2].endswith("| – |")


def test_plot_draws_rows_with_a_kl(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(ROWS, tmp_path / "kl.png")
    assert min(Image.open(tmp_path / "kl.png").size) > 500
    with pytest.raises(ValueError, match="nothing to draw"):
        plot([Row("same", "W8", statistics(0.0), 8.5, 1e7)], tmp_path / "nothing.png")
