"""Draws the clips of the bundled calibration set: `python tools/draw_clips.py`; the result is committed.

Each clip is an animated WebP of two frames a second, which PIL alone decodes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SCALE = 2  # drawn at twice the size, so that edges are smooth
MILLISECONDS = 500
DEFAULT_OUT = Path(__file__).parents[1] / "transformers_qaig" / "data" / "default_set"
Turns = list[tuple[str, str]]


class Board:
    """One frame; coordinates are those of the finished picture."""

    def __init__(self, width: int, height: int, colour: str):
        self.size = (width, height)
        self.pixels = Image.new("RGB", (width * SCALE, height * SCALE), colour)
        self.draw = ImageDraw.Draw(self.pixels)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: str, radius: float = 0) -> None:
        self.draw.rounded_rectangle([v * SCALE for v in (x0, y0, x1, y1)], radius * SCALE, fill=fill)

    def circle(self, x: float, y: float, r: float, fill: str) -> None:
        self.draw.ellipse([v * SCALE for v in (x - r, y - r, x + r, y + r)], fill=fill)

    def line(self, points: list[tuple[float, float]], fill: str, width: float) -> None:
        self.draw.line(
            [(x * SCALE, y * SCALE) for x, y in points], fill=fill, width=round(width * SCALE), joint="curve"
        )

    def poly(self, points: list[tuple[float, float]], fill: str) -> None:
        self.draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=fill)

    def text(self, x: float, y: float, text: str, size: float, fill: str = "black", anchor: str = "mm") -> None:
        font = ImageFont.load_default(size * SCALE)
        self.draw.text((x * SCALE, y * SCALE), text, font=font, fill=fill, anchor=anchor)

    def image(self) -> Image.Image:
        return self.pixels.resize(self.size, Image.Resampling.LANCZOS)


def crossing_ball() -> Iterator[Board]:
    for k in range(8):
        board = Board(352, 240, "#dfeaf4")
        board.rect(0, 190, 352, 240, "#7a8f5a")
        board.rect(250, 110, 330, 190, "#b5523b")
        x, y = 30 + 42 * k, 170 - 110 * abs(math.sin(k * math.pi / 3.5))
        board.circle(x, 194, 14, "#5f7046")
        board.circle(x, y, 20, "#1d6fd6")
        board.circle(x - 6, y - 7, 5, "#8fbdf0")
        yield board


def traffic_light() -> Iterator[Board]:
    states = ["red", "red", "red", "both", "green", "green", "green", "yellow"]
    for state in states:
        board = Board(256, 320, "#a9c6de")
        board.rect(0, 250, 256, 320, "#555b61")
        board.rect(122, 190, 134, 290, "#3b3f44")
        board.rect(94, 30, 162, 200, "#24272b", 14)
        lit = {"red": state in ("red", "both"), "yellow": state in ("yellow", "both"), "green": state == "green"}
        for i, (name, colours) in enumerate(
            {"red": ("#ff3b30", "#4a1815"), "yellow": ("#ffcc00", "#4a3d0d"), "green": ("#34c759", "#143d1f")}.items()
        ):
            board.circle(128, 62 + 52 * i, 21, colours[0] if lit[name] else colours[1])
        yield board


def clock_hands() -> Iterator[Board]:
    for k in range(10):
        board = Board(288, 288, "#f2ebe0")
        board.circle(144, 144, 124, "#8d5b3f")
        board.circle(144, 144, 112, "white")
        for hour in range(12):
            angle = math.radians(30 * hour)
            board.text(144 + 92 * math.sin(angle), 144 - 92 * math.cos(angle), str(hour or 12), 20, "#222222")
        minutes = 9 * 60 + 5 * k
        for angle, length, width in ((minutes / 2, 54, 7), (6 * minutes, 84, 4)):
            turn = math.radians(angle)
            board.line([(144, 144), (144 + length * math.sin(turn), 144 - length * math.cos(turn))], "#222222", width)
        board.circle(144, 144, 7, "#d62828")
        yield board


def growing_chart() -> Iterator[Board]:
    values = [12, 18, 15, 27, 34, 31, 45, 52, 48]
    for k in range(2, len(values) + 1):
        board = Board(400, 256, "white")
        board.text(200, 20, "Visitors by month", 17, "#333333")
        board.line([(40, 40), (40, 220), (380, 220)], "#888888", 1.5)
        points = [(60 + 37 * i, 220 - 3 * value) for i, value in enumerate(values[:k])]
        board.line(points, "#e07a1f", 3)
        for (x, y), value, month in zip(points, values, "JFMAMJJAS"):
            board.circle(x, y, 5, "#e07a1f")
            board.text(x, y - 15, str(value), 13, "#555555")
            board.text(x, 234, month, 13, "#555555")
        yield board


def form_on_screen() -> Iterator[Board]:
    typed = ["", "Ad", "Ada Lo", "Ada Lovelace", "Ada Lovelace", "Ada Lovelace", "Ada Lovelace"]
    mail = ["", "", "", "", "ada@", "ada@post.ex", "ada@post.example"]
    for k in range(9):
        board = Board(360, 270, "#e9edf2")
        board.rect(30, 20, 330, 250, "white", 12)
        board.text(52, 46, "Sign up", 20, "#1b263b", "lm")
        for y, label, value in ((88, "Name", typed[min(k, 6)]), (148, "E-mail", mail[min(k, 6)])):
            board.text(52, y, label, 13, "#667788", "lm")
            board.rect(52, y + 12, 308, y + 40, "#f3f5f8", 5)
            board.text(60, y + 26, value, 15, "#111111", "lm")
        board.rect(52, 208, 308, 238, "#2563eb" if k < 7 else "#1e3a8a", 6)
        board.text(180, 223, "Send" if k < 8 else "Sent. Thank you!", 15, "white")
        yield board


def shapes_one_by_one() -> Iterator[Board]:
    triangle = [(250, 60), (300, 140), (200, 140)]
    drawings: list[Callable[[Board], None]] = [
        lambda board: board.rect(40, 50, 120, 130, "#e63946"),
        lambda board: board.circle(170, 190, 40, "#2a9d5c"),
        lambda board: board.poly(triangle, "#f6c945"),
        lambda board: board.circle(80, 200, 26, "#8e44ad"),
        lambda board: board.rect(240, 170, 310, 240, "#1d6fd6"),
    ]
    for k in range(6):
        board = Board(336, 272, "#fdf6e6")
        for drawing in drawings[:k]:
            drawing(board)
        yield board


CLIPS: dict[Callable[[], Iterator[Board]], list[Turns]] = {
    crossing_ball: [
        [
            ("In which direction does the ball move?", "From left to right."),
            ("Describe the video.", "A blue ball bounces over grass from the left to the right, past a brown box."),
        ],
        [("What does the ball pass at the end?", "A brown box.")],
    ],
    traffic_light: [
        [
            ("Which light is on at the beginning, and which at the end?", "Red at the beginning, yellow at the end."),
            ("Name the phases in order.", "Red, red with yellow, green, yellow."),
        ],
    ],
    clock_hands: [
        [
            ("What time does the clock show first?", "9:00"),
            ("And at the end of the video?", "9:45"),
            ("How much time passes on the clock?", "45 minutes."),
        ],
    ],
    growing_chart: [
        [
            ("Which month has the most visitors?", "August, with 52."),
            ("In which months does the line fall?", "It falls in March, in June and in September."),
        ],
        [("Donne le nombre de visiteurs du dernier mois.", "48, en septembre.")],
    ],
    form_on_screen: [
        [
            (
                "What does the user do?",
                "The user signs up: they type the name Ada Lovelace, then the address ada@post.example, and send the "
                "form.",
            ),
            ("What does the button say at the end?", "Sent. Thank you!"),
        ],
    ],
    shapes_one_by_one: [
        [
            ("How many shapes are there at the end?", "5"),
            (
                "In which order do they appear? Answer with a JSON array.",
                '["red square", "green circle", "yellow triangle", "purple circle", "blue square"]',
            ),
        ],
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    folder = parser.parse_args().out
    lines = []
    for draw, conversations in CLIPS.items():
        path = folder / f"clip_{draw.__name__}.webp"
        first, *others = [board.image() for board in draw()]
        first.save(path, save_all=True, append_images=others, duration=MILLISECONDS, loop=0, quality=82, method=6)
        lines += [json.dumps({"video": path.name, "turns": turns}, ensure_ascii=False) for turns in conversations]
        print(f"{path.name}: {path.stat().st_size} bytes")
    (folder / "clips.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
