# ruff: noqa: E501
"""Shapes, graphs and sets to count, compare and measure."""

from __future__ import annotations

import json
import math

import numpy as np
from canvas import Canvas, Picture, lerp

COLOURS = {
    "red": "#e63946",
    "blue": "#1d6fd6",
    "green": "#2a9d5c",
    "yellow": "#f6c945",
    "purple": "#8e44ad",
    "orange": "#f3722c",
}
WORDS = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def _shape(canvas, kind, x, y, r, fill) -> None:
    edge = lerp(fill, "black", 0.35)
    if kind == "circle":
        canvas.circle(x, y, r, fill=fill, outline=edge, width=1.5)
    elif kind == "square":
        canvas.rect(x - r * 0.85, y - r * 0.85, x + r * 0.85, y + r * 0.85, fill=fill, outline=edge, width=1.5)
    else:
        corners, inner = {"triangle": (3, None), "star": (5, 0.42), "hexagon": (6, None)}[kind]
        n = corners * (2 if inner else 1)
        radii = [r * (inner if inner and k % 2 else 1.1) for k in range(n)]
        canvas.poly(
            [
                (x + q * math.sin(2 * math.pi * k / n), y - q * math.cos(2 * math.pi * k / n))
                for k, q in enumerate(radii)
            ],
            fill,
            edge,
            1.5,
        )


def shape_scene(rng, i) -> Picture:
    width, height = [(448, 448), (560, 360), (384, 512), (480, 400)][i % 4]
    canvas = Canvas(width, height, ["#ffffff", "#101820", "#fdf3e1", "#e8f0f2"][i % 4])
    kinds, names = ["circle", "square", "triangle", "star", "hexagon"], list(COLOURS)
    placed: list[tuple] = []
    while len(placed) < 9 + 2 * i:
        r = float(rng.uniform(18, 36))
        x, y = float(rng.uniform(r + 8, width - r - 8)), float(rng.uniform(r + 8, height - r - 8))
        if all(math.hypot(x - p[0], y - p[1]) > r + p[2] + 10 for p in placed):
            placed.append((x, y, r, str(rng.choice(kinds)), str(rng.choice(names))))
    for x, y, r, kind, colour in placed:
        _shape(canvas, kind, x, y, r, COLOURS[colour])
    counts = {k: sum(p[3] == k for p in placed) for k in kinds}
    reds = [p for p in placed if p[4] == "red"]
    left = min(placed)
    big = max(placed, key=lambda p: p[2])
    turns = [
        ("How many shapes are there?", str(len(placed))),
        ("Which shape is furthest to the left?", f"{'An' if left[4] == 'orange' else 'A'} {left[4]} {left[3]}."),
        ("How many of them are red?", f"{WORDS[min(len(reds), 9)].capitalize()}."),
    ]
    listing = json.dumps([{"shape": p[3], "color": p[4]} for p in sorted(placed, key=lambda p: p[1])])
    other = (
        [("List the shapes from top to bottom as a JSON array.", listing)]
        if i % 2
        else [
            ("Count each kind of shape.", ", ".join(f"{k}s: {n}" for k, n in counts.items()) + "."),
            ("What colour is the largest shape?", big[4]),
        ]
    )
    return Picture(canvas.image(), [turns, other])


def triangle(rng, i) -> Picture:
    canvas = Canvas(440, 340, ["#ffffff", "#20344a"][i % 2])
    ink = ["#1b263b", "#e8eef5"][i % 2]
    if i % 2 == 0:
        a, b, c = [(3, 4, 5), (5, 12, 13), (8, 6, 10)][int(rng.integers(3))]
        points = [(80, 270), (360, 270), (80, 90)]
        canvas.poly(points, "#cfe3ff", ink, 2)
        canvas.line([(80, 250), (100, 250), (100, 270)], ink, 1.5)
        canvas.text(220, 292, f"{max(a, b)} cm", 17, ink, "timesitalic", "mm")
        canvas.text(46, 180, f"{min(a, b)} cm", 17, ink, "timesitalic", "mm")
        canvas.text(240, 164, "x", 20, "#c1121f", "timesitalic", "mm")
        turns = [
            (
                "Find x.",
                f"The triangle has a right angle, so x² = {min(a, b)}² + {max(a, b)}² = {a * a + b * b} and x = {c} cm.",
            ),
            ("What is the area?", f"{a * b / 2:g} cm²"),
        ]
    else:
        p, q = int(rng.integers(40, 70)), int(rng.integers(45, 75))
        canvas.poly([(60, 270), (380, 270), (210, 70)], (255, 255, 255, 30), ink, 2)
        canvas.text(100, 254, f"{p}°", 17, ink, anchor="mm")
        canvas.text(334, 254, f"{q}°", 17, ink, anchor="mm")
        canvas.text(212, 108, "?", 20, "#ffb703", "bold", "mm")
        for x, y, name in ((46, 282, "A"), (394, 282, "B"), (210, 52, "C")):
            canvas.text(x, y, name, 17, ink, "timesitalic", "mm")
        turns = [
            (
                "How large is the angle at C?",
                f"The angles of a triangle add up to 180°, so it is 180° − {p}° − {q}° = {180 - p - q}°.",
            )
        ]
    return Picture(canvas.image(), [turns])


def network(rng, i) -> Picture:
    names = list("ABCDEFG")
    canvas = Canvas(440, 400, ["#0f1b2d", "#ffffff"][i % 2])
    angle = np.arange(6) * math.pi / 3 + 0.3
    at = [(220.0, 200.0)] + [(220 + 160 * math.cos(a), 200 + 145 * math.sin(a)) for a in angle]
    edges = [(0, int(k)) for k in 1 + rng.choice(6, 4, replace=False)] + [(k, k % 6 + 1) for k in range(1, 7)]
    weights = {edge: int(rng.integers(1, 10)) for edge in edges}
    ink = ["#d7e3f4", "#2b3a4a"][i % 2]
    for (a, b), weight in weights.items():
        canvas.line([at[a], at[b]], ["#5f7ea8", "#90a4b8"][i % 2], 1 + weight / 4)
        x, y = (at[a][0] + at[b][0]) / 2, (at[a][1] + at[b][1]) / 2
        canvas.circle(x, y, 11, fill=["#0f1b2d", "#ffffff"][i % 2])
        canvas.text(x, y, str(weight), 13, ink, "bold", "mm")
    for k, (x, y) in enumerate(at):
        canvas.circle(x, y, 21, fill=["#e76f51", "#457b9d"][i % 2] if k else "#f4a261", outline=ink, width=1.5)
        canvas.text(x, y, names[k], 17, "white", "bold", "mm")
    neighbours = sorted(names[b] for a, b in edges if a == 0)
    heavy = max(weights, key=lambda e: weights[e])
    return Picture(
        canvas.image(),
        [
            [
                ("Which nodes is A connected to?", f"{', '.join(neighbours[:-1])} and {neighbours[-1]}."),
                (
                    "What is the sum of the weights of A's edges?",
                    str(sum(w for (a, _), w in weights.items() if a == 0)),
                ),
                ("How large is the largest weight in the graph?", str(weights[heavy])),
            ]
        ],
    )


def venn(rng, i) -> Picture:
    a, b, both = [int(v) for v in rng.integers(3, 25, 3)]
    left, right = [("Cyclists", "Swimmers"), ("Tea", "Coffee")][i % 2]
    canvas = Canvas(440, 320, ["#ffffff", "#fdf6e9"][i % 2])
    canvas.circle(165, 170, 115, fill=(66, 135, 245, 110), outline="#2d5ea8", width=2)
    canvas.circle(275, 170, 115, fill=(245, 120, 66, 110), outline="#a84f2d", width=2)
    canvas.text(120, 36, left, 17, "#2d5ea8", "bold", "mm")
    canvas.text(320, 36, right, 17, "#a84f2d", "bold", "mm")
    for x, value in ((110, a), (220, both), (330, b)):
        canvas.text(x, 170, str(value), 28, "#222", "bold", "mm")
    canvas.text(424, 302, f"{int(rng.integers(1, 9))} in neither", 13, "#555", anchor="rm")
    return Picture(
        canvas.image(),
        [
            [
                (f"How many belong to both {left} and {right}?", str(both)),
                (f"How many belong to {left} in all?", f"{a} only there and {both} in the overlap: {a + both}."),
            ]
        ],
    )


DRAWINGS = [(network, 2), (venn, 2), (shape_scene, 4), (triangle, 2)]
