# ruff: noqa: E501
"""Where people live: a city at night, a street, a room."""

from __future__ import annotations

import math

import numpy as np
from canvas import Canvas, Picture, lerp
from PIL import Image
from render import landscape


def night_city(rng, i) -> Picture:
    width, height = [(600, 400), (432, 576)][i % 2]
    water = int(height * 0.74)
    canvas = Canvas(width, height)
    canvas.gradient("#070b1f", "#2c2f63", (0, 0, width, water))
    for _ in range(120):
        canvas.circle(
            rng.uniform(0, width),
            rng.uniform(0, water * 0.6),
            rng.uniform(0.4, 1.2),
            fill=(255, 255, 255, int(rng.uniform(90, 255))),
        )
    mx = width * [0.78, 0.25][i % 2]
    canvas.circle(mx, 74, 30, fill="#f4f1d6")
    if i % 2:
        canvas.circle(mx + 14, 66, 27, fill="#0b1028")
    for layer in range(3):
        x = -10.0
        while x < width:
            w, h = rng.uniform(34, 74), height * rng.uniform(0.15, 0.42) * (1.25 - 0.28 * layer)
            tone = lerp("#2a2d55", "#0a0c1a", (layer + 0.4) / 2.4)
            canvas.rect(x, water - h, x + w, water, fill=tone)
            for wx in np.arange(x + 6, x + w - 7, 10):
                for wy in np.arange(water - h + 8, water - 8, 13):
                    if rng.random() < 0.14 + 0.16 * layer:
                        canvas.rect(
                            wx,
                            wy,
                            wx + 4.5,
                            wy + 6.5,
                            fill=str(rng.choice(["#ffd77a", "#fff0b8", "#ffb84d", "#bfe3ff"])),
                        )
            x += w + rng.uniform(0, 8)
    picture = canvas.image()
    pixels = np.asarray(picture, float).copy()
    depth = np.arange(height - water)
    rows = np.clip(water - 1 - (depth * 1.25).astype(int), 0, water - 1)
    mirror = pixels[rows]
    shift = (3.5 * np.sin(depth * 0.8) + rng.normal(0, 1.5, len(depth))).astype(int)
    mirror = np.stack([np.roll(row, s, 0) for row, s in zip(mirror, shift)])
    pixels[water:] = mirror * 0.55 + np.array([6, 10, 30]) * 0.45
    turns = [
        [
            (
                "Where was this picture taken, and when?",
                "In a city with many tall buildings by the water, at night. Hundreds of windows are lit, a full moon and stars are in the sky, and the lights are mirrored in the water.",
            )
        ],
        [
            ("What phase is the moon in?", "A narrow crescent."),
            (
                "Опиши картинку одним предложением.",
                "Ночной город с освещёнными окнами отражается в воде под узким месяцем и звёздами.",
            ),
        ],
    ][i % 2]
    return Picture(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), [turns])


def street(rng, i) -> Picture:
    canvas = Canvas(640, 400)
    canvas.gradient(*[("#6fb7ea", "#dff1fb"), ("#b8c4cf", "#e9edf0")][i % 2], (0, 0, 640, 290))
    if i % 2 == 0:
        canvas.circle(560, 58, 30, fill="#ffe36e")
    for cx in (90, 300, 450):
        for dx, dy, r in ((-28, 4, 18), (0, -6, 26), (28, 4, 18)):
            canvas.circle(cx + dx, 60 + (cx % 40) + dy, r, fill=(255, 255, 255, 220))
    walls = [str(c) for c in rng.permutation(["#e07a5f", "#f2cc8f", "#81b29a", "#a8c5da", "#d9a5b3"])]
    label = {"#e07a5f": "red", "#f2cc8f": "yellow", "#81b29a": "green", "#a8c5da": "blue", "#d9a5b3": "pink"}
    floors = rng.integers(1, 4, 4)
    for k in range(4):
        x, w = 20 + 156 * k, 132
        top = 278 - 62 * floors[k] - 26
        canvas.rect(x, top, x + w, 290, fill=walls[k], outline=lerp(walls[k], "black", 0.3))
        canvas.poly([(x - 8, top), (x + w + 8, top), (x + w / 2, top - 46)], fill="#7d4f3a", outline="#5b3828")
        for f in range(floors[k]):
            for c in range(3):
                wx, wy = x + 14 + 40 * c, 278 - 62 * (f + 1) + (0 if f else 4)
                if f == 0 and c == 1:
                    canvas.rect(wx, 236, wx + 26, 290, fill="#5a3d2b", outline="#3b281c")
                    canvas.circle(wx + 21, 264, 2, fill="#f1c40f")
                    continue
                canvas.rect(wx, wy, wx + 26, wy + 34, fill="#d8eefb", outline="white", width=2.5)
                canvas.line([(wx + 13, wy), (wx + 13, wy + 34)], "white", 2)
    canvas.rect(0, 290, 640, 312, fill="#c9c4ba")
    canvas.rect(0, 312, 640, 400, fill="#4b4f55")
    for x in range(10, 640, 84):
        canvas.rect(x, 352, x + 46, 357, fill="#f1f1ea")
    cars = [("#c1121f", 120), ("#f4d35e", 420)][: 1 + i % 2]
    for colour, x in cars:
        canvas.circle(x + 62, 380, 62, fill=(0, 0, 0, 60), ry=6)
        canvas.poly([(x + 24, 342), (x + 40, 318), (x + 88, 318), (x + 106, 342)], fill=lerp(colour, "black", 0.15))
        canvas.poly([(x + 33, 341), (x + 45, 323), (x + 63, 323), (x + 63, 341)], fill="#cfe8f7")
        canvas.poly([(x + 67, 341), (x + 67, 323), (x + 85, 323), (x + 97, 341)], fill="#cfe8f7")
        canvas.rect(x, 340, x + 126, 370, fill=colour, radius=9)
        for wx in (x + 28, x + 98):
            canvas.circle(wx, 370, 14, fill="#1b1b1b")
            canvas.circle(wx, 370, 6, fill="#bbb")
    tree = [316, 160][i % 2]
    canvas.rect(tree - 4, 240, tree + 4, 300, fill="#6b4a2f")
    for _ in range(46):
        a, r = rng.uniform(0, 6.3), rng.uniform(0, 26)
        canvas.circle(
            tree + r * math.cos(a),
            224 + r * math.sin(a),
            rng.uniform(6, 12),
            fill=lerp("#3f8f3f", "#7cc05f", rng.random()),
        )
    colours = [label[c] for c in walls[:4]]
    tall = [c for c, f in zip(colours, floors) if f == floors.max()]
    turns = [
        (
            "Describe the street.",
            f"Four houses stand in a row, {', '.join(colours[:3])} and {colours[3]} from left to right, all with brown gabled roofs. "
            f"{'A red car drives' if i % 2 == 0 else 'A red and a yellow car drive'} along the road in front of them, and a tree grows on the pavement.",
        ),
        (
            "Which house has the most floors?",
            f"The {tall[0]} one."
            if len(tall) == 1
            else f"The {' and the '.join(tall)} houses are equally high, with {floors.max()} floors.",
        ),
        ("How many cars are there?", str(len(cars))),
    ]
    return Picture(canvas.image(), [turns])


def room(rng, i) -> Picture:
    canvas = Canvas(560, 420)
    wall, wood = [("#e8dcc8", "#9c6b43"), ("#6d8f8a", "#7a5236")][i % 2]
    canvas.gradient(lerp(wall, "white", 0.25), lerp(wall, "black", 0.1), (0, 0, 560, 290))
    for k in range(12):
        t0, t1 = (k / 12 - 0.5), ((k + 1) / 12 - 0.5)
        canvas.poly(
            [(280 + 600 * t0, 290), (280 + 600 * t1, 290), (280 + 1100 * t1, 420), (280 + 1100 * t0, 420)],
            lerp(wood, "black", 0.08 + 0.12 * (k % 2)),
        )
    canvas.rect(0, 284, 560, 294, fill=lerp(wall, "white", 0.55))
    canvas.rect(56, 50, 216, 206, fill="white")
    view = Image.fromarray(
        np.clip(
            landscape(
                rng, 288, 280, [(0, "#4f93d2"), (0.6, "#d6e9f5"), (1, "#dde")], "#9fbdd0", "#3d7a45", 4, 0.55, 0.3
            ),
            0,
            255,
        ).astype(np.uint8)
    )
    canvas.pixels.paste(view, (64 * 2, 58 * 2))
    canvas.rect(133, 58, 139, 198, fill="white")
    canvas.rect(64, 125, 208, 131, fill="white")
    for x in (40, 202):
        canvas.rect(x, 40, x + 30, 226, fill=["#c8553d", "#e9c46a"][i % 2], radius=5)
        for d in (8, 15, 22):
            canvas.line([(x + d, 42), (x + d, 224)], (0, 0, 0, 40), 2)
    canvas.rect(300, 62, 390, 132, fill="#4a3424")
    canvas.gradient("#f4a261", "#264653", (307, 69, 383, 125))
    canvas.circle(345, 96, 11, fill="#fff1c1")
    seat = ["#3d5a80", "#b56576"][i % 2]
    canvas.circle(415, 366, 130, fill=(0, 0, 0, 45), ry=14)
    canvas.rect(300, 214, 530, 310, fill=seat, radius=18)
    canvas.rect(300, 280, 530, 352, fill=lerp(seat, "white", 0.12), radius=12)
    canvas.rect(284, 250, 320, 354, fill=lerp(seat, "black", 0.15), radius=12)
    canvas.rect(510, 250, 546, 354, fill=lerp(seat, "black", 0.15), radius=12)
    canvas.poly([(340, 240), (388, 232), (396, 278), (348, 284)], ["#f2cc8f", "#e0fbfc"][i % 2])
    canvas.circle(140, 372, 90, fill=(0, 0, 0, 45), ry=10)
    canvas.rect(60, 306, 222, 318, fill=lerp(wood, "white", 0.15), radius=3)
    for x in (72, 202):
        canvas.rect(x, 318, x + 8, 372, fill=lerp(wood, "black", 0.3))
    if i % 2 == 0:
        canvas.poly([(120, 306), (162, 306), (168, 270), (114, 270)], "#b5651d")
        for k in range(9):
            a = math.radians(-150 + 15 * k)
            canvas.line([(141, 272), (141 + 48 * math.cos(a), 268 + 52 * math.sin(a))], "#4c956c", 4)
            canvas.circle(141 + 48 * math.cos(a), 268 + 52 * math.sin(a), 9, fill=lerp("#4c956c", "#a3cf8f", k / 9))
    else:
        for k, c in enumerate(("#e63946", "#f1faee", "#457b9d")):
            canvas.rect(90 + 4 * k, 294 - 12 * k, 160 - 6 * k, 305 - 12 * k, fill=c, outline="#333")
        canvas.rect(182, 282, 202, 306, fill="white", outline="#999", radius=3)
        canvas.arc(204, 293, 7, -90, 90, "#999", 3)
    things = ["a potted plant", "three books and a white cup"][i % 2]
    turns = [
        ("What stands on the small table?", things.capitalize() + "."),
        (
            "Describe this room for someone who cannot see it.",
            f"A living room with {['cream', 'sage green'][i % 2]} walls and a floor of wooden boards. On the left a window between "
            f"{['rust red', 'yellow'][i % 2]} curtains looks out on green hills; below it is a low table with {things}. On the right "
            f"stands a {['blue', 'dusty pink'][i % 2]} sofa with a {['yellow', 'pale blue'][i % 2]} cushion, and above it hangs a framed "
            "picture of a sunset.",
        ),
    ]
    return Picture(canvas.image(), [turns])


DRAWINGS = [(night_city, 2), (street, 2), (room, 2)]
