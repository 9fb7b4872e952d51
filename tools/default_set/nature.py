# ruff: noqa: E501
"""Landscapes, water, woods, gardens, and what lies above and below them."""

from __future__ import annotations

import math

import numpy as np
from canvas import Canvas, Picture, lerp
from render import blend, fbm, landscape, ramp, ridge, to_image


def lerp_hex(a, b, t) -> str:
    return "#{:02x}{:02x}{:02x}".format(*lerp(a, b, t))


def mountains(rng, i) -> Picture:
    width, height = [(640, 427), (512, 512), (600, 338)][i % 3]
    sky = [
        [(0, "#2a5d9f"), (0.55, "#c9dff0"), (1, "#dfe9f0")],
        [(0, "#34256b"), (0.3, "#b0486e"), (0.5, "#ffb46b"), (1, "#ffd9a0")],
        [(0, "#8fa3b5"), (0.6, "#dfe5ea"), (1, "#e8ecee")],
    ][i % 3]
    far, near = [("#8fb0cc", "#22402a"), ("#a05c7a", "#160f24"), ("#a9b6bf", "#2b3538")][i % 3]
    pixels = landscape(rng, width, height, sky, far, near, 5 + i, 0.5, 0.34)
    if i % 3 == 1:
        y, x = np.mgrid[0:height, 0:width]
        glow = np.exp(-np.hypot(x - 0.64 * width, y - 0.27 * height) / 60)
        pixels = blend(pixels, (255, 236, 190), np.clip(glow * 1.3 * (y < 0.42 * height), 0, 1))
    answer = [
        "Ranges of hills lie behind one another under a blue sky with white clouds. The nearest slopes are dark green, and "
        "the farther ones become paler and bluer in the haze, which gives the view its depth.",
        "It is evening, or very early morning: the sky runs from violet overhead through pink to orange above the hills, a bright "
        "glow marks the low sun, and the mountains are almost black against it.",
        "A cold, misty mountain landscape without any bright colour. Grey ridges fade into a pale sky, and only the "
        "foreground is dark.",
    ][i % 3]
    question = [
        "Describe the picture.",
        "What time of day is it, and how can you tell?",
        "What mood does this scene have?",
    ][i % 3]
    return Picture(to_image(pixels, None, rng, 3), [[(question, answer)]])


def sea(rng, i) -> Picture:
    width, height = [(576, 432), (448, 560)][i % 2]
    horizon = int(height * [0.5, 0.42][i % 2])
    sky = [[(0, "#1c3f7c"), (1, "#f6c48f")], [(0, "#4a90d9"), (1, "#d6ecf8")]][i % 2]
    y, x = np.mgrid[0:height, 0:width]
    pixels = ramp(np.clip(y / horizon, 0, 1), sky)
    clouds = np.clip(fbm(rng, width, height, 2.5, 6, 0.55, 3) * 2 - 1, 0, 1) * (y < horizon)
    pixels = blend(pixels, [(255, 190, 150), (255, 255, 255)][i % 2], clouds * 0.8)
    depth = np.clip((y - horizon) / (height - horizon), 1e-3, 1)
    waves = np.zeros((height, width))
    for k in range(9):
        side, f = rng.uniform(0.2, 1.6) * (-1) ** k, 1.6**k
        waves += (
            np.sin(f * side * (x - width / 2) / (25 + 200 * depth) + f * 7 / (depth + 0.12) + rng.uniform(0, 6))
            / f**0.35
        )
    water = ramp(
        np.clip(0.45 + 0.14 * waves, 0, 1),
        [[(0, "#0d2546"), (0.6, "#3b5f8a"), (1, "#f0b98a")], [(0, "#0c5a7a"), (0.6, "#2b9ab8"), (1, "#c9f2f5")]][i % 2],
    )
    pixels = np.where((y >= horizon)[..., None], water, pixels)
    if i % 2 == 0:
        sun = np.hypot(x - 0.6 * width, y - horizon + 26)
        pixels = blend(pixels, (255, 244, 214), np.clip(30 - sun, 0, 1) * (y < horizon))
        pixels = blend(pixels, (255, 210, 150), np.exp(-sun / 50) * 0.6 * (y < horizon))
        path = np.exp(-(((x - 0.6 * width) / (16 + 60 * depth)) ** 2)) * (waves > 0.2) * (y >= horizon)
        pixels = blend(pixels, (255, 226, 170), path * 0.85)
    canvas = Canvas(width, height, image=to_image(pixels, None, rng, 2))
    bx, by, s = [(180, horizon + 34, 1.0), (250, horizon + 60, 1.5)][i % 2]
    hull, sail = ["#241a1a", "#c0392b"][i % 2], ["#3b2a2a", "#fdfdfd"][i % 2]
    canvas.poly(
        [(bx - 42 * s, by), (bx + 42 * s, by), (bx + 28 * s, by + 16 * s), (bx - 30 * s, by + 16 * s)], fill=hull
    )
    canvas.line([(bx, by), (bx, by - 84 * s)], "#222", 2)
    canvas.poly([(bx + 4 * s, by - 82 * s), (bx + 4 * s, by - 6 * s), (bx + 40 * s, by - 6 * s)], fill=sail)
    canvas.poly(
        [(bx - 4 * s, by - 70 * s), (bx - 4 * s, by - 6 * s), (bx - 28 * s, by - 6 * s)],
        fill=lerp(sail, "#999999", 0.25),
    )
    turns = [
        [
            ("What is on the water?", "A small sailing boat, dark against the light of the setting sun."),
            ("Where is the sun?", "Just above the horizon, right of the middle."),
        ],
        [
            (
                "¿Qué se ve en la imagen?",
                "Un velero de casco rojo y velas blancas navega por un mar azul verdoso bajo un cielo claro con algunas nubes.",
            ),
            ("How many boats are there?", "One"),
        ],
    ][i % 2]
    return Picture(canvas.image(), [turns])


def forest(rng, i) -> Picture:
    width, height = [(448, 576), (600, 400)][i % 2]
    fog, dark = [("#dfe8df", "#15261b"), ("#f3c98b", "#3b1f14")][i % 2]
    y, x = np.mgrid[0:height, 0:width]
    pixels = ramp(y / height, [(0, lerp_hex(fog, "#ffffff", 0.3)), (0.75, fog), (1, lerp_hex(dark, fog, 0.35))])
    for layer in range(6):
        t = layer / 5
        tone = np.array(lerp(fog, dark, 0.12 + 0.88 * t), float)
        for _ in range(9 - layer):
            cx, half = rng.uniform(0, width), (2 + 15 * t**1.5) * rng.uniform(0.7, 1.3)
            lean = rng.normal(0, 0.02)
            foot = height * (0.72 + 0.26 * t)
            bend = cx + lean * (y - foot) + 2 * np.sin(y / 40 + cx)
            trunk = np.clip(half * (0.75 + 0.35 * y / height) - np.abs(x - bend), 0, 1) * (y < foot)
            bark = 0.85 + 0.3 * fbm(rng, width, height, 30, 3, 0.6, 0.2) if layer > 3 else 1.0
            pixels = pixels + (tone * np.asarray(bark)[..., None] - pixels) * trunk[..., None]
        crown = np.clip(
            (fbm(rng, width, height, 8, 6, 0.65) - 0.42 - 0.9 * (y / height) * (0.6 + 0.5 * (1 - t))) * 9, 0, 1
        )
        leaf = (
            np.array(lerp(fog, ["#2f5d34", "#c0561c"][i % 2], 0.15 + 0.8 * t), float)
            * (0.8 + 0.4 * fbm(rng, width, height, 40, 3))[..., None]
        )
        pixels = pixels + (leaf - pixels) * (crown * 0.9)[..., None]
        ground = ridge(rng, width, height * (0.74 + 0.2 * t), height * 0.05, 5)
        moss = (
            np.array(lerp(fog, ["#2c4a27", "#7a3b12"][i % 2], 0.2 + 0.8 * t), float)
            * (0.7 + 0.6 * fbm(rng, width, height, 40, 4, 0.7))[..., None]
        )
        pixels = pixels + (moss - pixels) * np.clip(y - ground[None], 0, 1)[..., None]
    turns = [
        [
            (
                "What is shown here?",
                "A misty forest. Dark trunks stand in the foreground, and the trees behind them fade into pale fog.",
            ),
            (
                "Is it more likely dawn or noon?",
                "Dawn: the soft, pale light and the mist fit an early morning better than noon.",
            ),
        ],
        [
            ("Which season is it?", "Autumn, by the orange and brown leaves."),
            ("写一句话描述这张图片。", "秋天的树林里，橙色的树叶笼罩在温暖的薄雾中。"),
        ],
    ][i % 2]
    return Picture(to_image(pixels, None, rng, 2), [turns])


def flowers(rng, i) -> Picture:
    width, height = [(480, 400), (420, 520)][i % 2]
    canvas = Canvas(width, height)
    canvas.gradient(*[("#bfe3f7", "#f4fbff"), ("#f7e8d0", "#fffaf0")][i % 2])
    canvas.gradient("#9ccc65", "#33691e", (0, int(height * 0.7), width, height))
    for _ in range(900):
        x, y = rng.uniform(0, width), rng.uniform(height * 0.72, height + 30)
        canvas.line(
            [(x, y), (x + rng.uniform(-12, 12), y - rng.uniform(30, 80))],
            lerp("#2f6b2f", "#8cc152", rng.random()),
            rng.uniform(1, 3),
        )
    kinds = {"red": "#e03131", "yellow": "#fcc419", "purple": "#9c36b5", "white": "#f8f9fa"}
    names = [str(n) for n in rng.choice(list(kinds), [5, 7][i % 2])]
    xs = np.linspace(50, width - 50, len(names)) + rng.uniform(-14, 14, len(names))
    for name, x in zip(names, xs):
        y, r = rng.uniform(height * 0.2, height * 0.5), rng.uniform(20, 29)
        stem = [(x + 10 * math.sin(k / 6 * 3), y + (height * 0.95 - y) * k / 6) for k in range(7)]
        canvas.line(stem, "#3c7a35", 4)
        canvas.circle(stem[3][0] + 15, stem[3][1], 16, fill="#4c9141", ry=6)
        petals = 9 if name == "white" else 6
        for k in range(petals):
            a = 2 * math.pi * k / petals + rng.uniform(0, 0.1)
            canvas.circle(
                x + r * 0.72 * math.cos(a),
                y + r * 0.72 * math.sin(a),
                r * (0.36 if petals == 9 else 0.52),
                fill=lerp(kinds[name], "black", 0.12 * (k % 2)),
                outline=lerp(kinds[name], "black", 0.3),
                width=0.7,
            )
        canvas.circle(x, y, r * 0.4, fill="#f08c00" if name != "yellow" else "#5c3a12")
    counts = {n: names.count(n) for n in kinds if n in names}
    best = max(counts, key=lambda n: counts[n])
    listing = ", ".join(f"{n} {c}" for n, c in counts.items())
    turns = [
        ("How many flowers are there?", str(len(names))),
        ("Which colour is the leftmost flower?", names[0].capitalize() + "."),
        (
            "How many of each colour?",
            f"Counted by colour: {listing}."
            + (f" {best.capitalize()} is the most frequent." if list(counts.values()).count(counts[best]) == 1 else ""),
        ),
    ]
    return Picture(canvas.image(), [turns])


def seen_from_above(rng, i) -> Picture:
    width, height = [(512, 384), (448, 448)][i % 2]
    land = fbm(rng, width, height, 2.6, 7, 0.5)
    gy, gx = np.gradient(land * 160)
    light = np.clip(0.85 + 0.35 * (-gx - gy), 0.4, 1.4)
    if i % 2 == 0:
        stops = [
            (0, "#0b3c6f"),
            (0.44, "#2f86b5"),
            (0.47, "#9ad4d6"),
            (0.48, "#e6d8a8"),
            (0.53, "#6ea15a"),
            (0.7, "#3d6b3a"),
            (0.83, "#7d6a55"),
            (1, "#ffffff"),
        ]
        pixels = ramp(land, stops) * np.where(land > 0.475, light, 1)[..., None]
        turns = [
            (
                "What do the colours of this map stand for?",
                "It is a relief map. Blue is water, darker where it is deeper; a sandy strip follows the shore; green is low land, brown higher land, and white marks the summits.",
            )
        ]
    else:
        y, x = np.mgrid[0:height, 0:width]
        pixels = np.zeros((height, width, 3)) + ramp(land, [(0, "#02030a"), (0.6, "#0b0a20"), (1, "#2a1740")])
        a, r = np.arctan2(y - 224, (x - 224) * 1.0), np.hypot(y - 224, x - 224)
        arms = (0.5 + 0.5 * np.cos(2 * a - 4.2 * np.log(r + 8))) ** 1.6 * np.exp(-r / 95) * (0.5 + land)
        pixels = (
            pixels
            + arms[..., None] * np.array([150, 170, 255.0])
            + np.exp(-r / 22)[..., None] * np.array([255, 225, 170.0])
        )
        stars = rng.random((height, width)) < 0.0035
        pixels = np.where(stars[..., None], rng.uniform(130, 255, (height, width, 1)), pixels)
        turns = [
            (
                "What does the picture show?",
                "A spiral galaxy with a bright yellowish core and two bluish arms, among many stars on a dark sky.",
            ),
            ("What shape is it?", "A spiral."),
        ]
    return Picture(to_image(pixels), [turns])


DRAWINGS = [(mountains, 3), (sea, 2), (forest, 2), (flowers, 2), (seen_from_above, 2)]
