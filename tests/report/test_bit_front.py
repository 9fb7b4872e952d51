"""The front of plans as a table and as a picture."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from transformers_qaig.plan.front import Front, Point
from transformers_qaig.report.bit_front import BAR, plot, table

POINTS = [Point(2.0, 1 << 20, 0.4, {2: 5}), Point(3.0, 2 << 20, 0.1, {2: 1, 4: 4}), Point(4.0, 3 << 20, -0.001, {4: 5})]
FRONT = Front(POINTS, 1, [Point(2.5, 1 << 20, 0.3, {2: 5})])


def test_a_row_has_the_widths_and_a_bar_as_long_as_its_loss() -> None:
    head, worst, knee, best, told, uniform = table(FRONT).splitlines()
    assert [line.count("#") for line in (head, worst, knee, best, uniform)] == [0, BAR, BAR // 4, 0, 0]
    assert [line.endswith("<- knee") for line in (worst, knee, best)] == [False, True, False]
    assert "1 x 2, 4 x 4" in knee
    assert told == "every weight at one width:"
    assert uniform.split()[0] == "2.500"


def test_losses_of_zero_have_no_bars() -> None:
    point = Point(2.0, 1 << 20, 0.0, {2: 5})
    assert "#" not in table(Front([point], 0, []))


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib, or leave the plot out"):
        plot(FRONT, tmp_path / "front.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("losses", [(0.4, 0.1, 0.01), (0.0, 0.0, 0.0)])
def test_the_picture_is_drawn_with_a_part_below_and_without_losses(tmp_path: Path, losses: tuple[float, ...]) -> None:
    pytest.importorskip("matplotlib")
    front = Front([Point(p.bits, p.size, loss, p.widths) for p, loss in zip(POINTS, losses)], 1, FRONT.uniform)
    below = []
    plot(front, tmp_path / "both.png", below.append)
    plot(front, tmp_path / "front.png")
    assert len(below) == 1
    with Image.open(tmp_path / "both.png") as both, Image.open(tmp_path / "front.png") as alone:
        assert both.height > alone.height
