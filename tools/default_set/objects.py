# ruff: noqa: E501
"""Things up close: an aquarium, balls and fruit (ray-traced), materials, and the photograph."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
from canvas import Canvas, Picture, lerp, rgb
from PIL import Image, ImageFilter
from render import EYE, PITCH, ZOOM, blend, fbm, ramp, ridge, spheres, to_image

PHOTOGRAPH = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
BALLS = {
    "red": (200, 36, 40),
    "green": (40, 150, 70),
    "blue": (35, 80, 200),
    "yellow": (235, 190, 40),
    "white": (235, 235, 235),
    "purple": (120, 50, 150),
    "orange": (235, 120, 30),
}


def balls(rng, i) -> Picture:
    width, height = [(560, 420), (480, 480), (640, 400), (448, 448)][i % 4]
    count = [3, 4, 5, 3][i % 4]
    names = [str(n) for n in rng.choice(list(BALLS), count, replace=False)]
    placed: list[tuple] = []
    while len(placed) < count:
        r = float(rng.uniform(0.4, 0.85))
        x, z = float(rng.uniform(-1.5, 1.5) * width / height), float(rng.uniform(-0.6, 2.6))
        if all(math.hypot(x - p[0][0], z - p[0][2]) > r + p[1] + 0.15 and abs(x - p[0][0]) > 0.5 for p in placed):
            placed.append(((x, r, z), r, BALLS[names[len(placed)]], 0.12 if len(placed) else [0.1, 0.55][i % 2]))
    grain = fbm(np.random.default_rng(5), 256, 256, 3, 6, 0.55, 0.3)

    def checker(x, z):
        odd = (np.floor(x * 1.1) + np.floor(z * 1.1)) % 2 == 0
        return np.where(odd[..., None], np.array([225, 222, 214.0]), np.array([70, 74, 84.0]))

    def wood(x, z):
        lines = grain[(np.abs(z * 60) % 256).astype(int), (np.abs(x * 14) % 256).astype(int)]
        seam = (np.abs((x * 0.9) % 1 - 0.5) > 0.485)[..., None]
        return np.where(seam, 50, ramp(lines, [(0, "#6e4526"), (0.5, "#a06d3f"), (1, "#c79a66")]))

    def sand(x, z):
        speck = grain[(np.abs(z * 90) % 256).astype(int), (np.abs(x * 90) % 256).astype(int)]
        return ramp(speck, [(0, "#c9b183"), (1, "#ecd9ae")])

    floor = [checker, wood, sand, wood][i % 4]
    sky = [("#dbe9f5", "#4f86c6"), ("#efe3d2", "#8f7f70"), ("#fbe5c8", "#e08f62"), ("#3a3f4d", "#15171e")][i % 4]
    pixels = spheres(placed, floor, sky, 2 * width, 2 * height)
    order = [n for _, n in sorted(zip([p[0][0] for p in placed], names))]
    big = names[int(np.argmax([p[1] for p in placed]))]
    small = names[int(np.argmin([p[1] for p in placed]))]
    front = names[int(np.argmin([p[0][2] - p[1] for p in placed]))]
    ground = ["a chequered floor", "a wooden floor", "sand", "a wooden floor"][i % 4]
    return Picture(
        to_image(pixels, (width, height)),
        [
            [
                (
                    "What colours are the balls, from left to right?",
                    f"{', '.join(order[:-1])} and {order[-1]}.".capitalize(),
                ),
                ("What do they lie on?", ground.capitalize() + "."),
                ("Which ball is nearest to the viewer?", f"The {front} one."),
            ],
            [
                (f"Which of the two is larger, the {small} ball or the {big} one?", f"The {big} one."),
                (
                    "Where does the light come from?",
                    "From the upper left and from the viewer's side: the balls are brightest on their upper left, and their shadows fall to the right and backwards.",
                ),
            ],
        ],
    )


def still_life(rng, i) -> Picture:
    table = ["#8a5a3a", "#d8d2c4"][i % 2]
    apples, oranges = [(3, 2), (2, 4)][i % 2]
    fruit = [("apple", (178, 30, 36))] * apples + [("orange", (235, 128, 22))] * oranges
    order = rng.permutation(len(fruit))
    placed, x = [], -0.98 * (len(fruit) - 1) / 2
    for k in order:
        _, colour = fruit[k]
        r = float(rng.uniform(0.40, 0.47))
        tone = tuple(float(v) for v in np.clip(np.array(colour) * rng.uniform(0.88, 1.08), 0, 255))
        placed.append(((x, r, float(rng.uniform(-0.6, 0.9))), r, tone, 0.03))
        x += 0.98
    rough = fbm(rng, 256, 256, 4, 6, 0.55, 0.25)

    def cloth(px, pz):
        shade = rough[(np.abs(pz * 50) % 256).astype(int), (np.abs(px * 18) % 256).astype(int)]
        return np.array(rgb(table), float) * (0.8 + 0.35 * shade)[..., None]

    width, height = [(600, 400), (640, 360)][i % 2]
    pixels = spheres(
        placed,
        cloth,
        [("#4b3b34", "#2a201c"), ("#b9c4c9", "#7f8f98")][i % 2],
        2 * width,
        2 * height,
        light=(-0.8, 0.7, -0.35),
    )
    canvas = Canvas(width, height, image=to_image(pixels, (width, height), rng, 1.5))
    for (cx, cy, cz), r, *_ in placed:  # a stalk at the top of each fruit, projected as the tracer does
        d = cz - EYE[2]
        sx = (cx / d / (ZOOM * width / height) + 0.5) * width
        sy = (0.5 - ((cy + r * 0.93 - EYE[1]) / d + PITCH) / ZOOM) * height
        canvas.line([(sx, sy + 3), (sx + 4, sy - 12 * 5 / d)], "#3d2a17", 2.5)
    names = [fruit[k][0] for k in order]
    turns = [
        ("How many apples and how many oranges are there?", f"{apples} apples and {oranges} oranges."),
        ("Which fruit is at the far right?", f"An {names[-1]}."),
        ("Name the fruit from left to right.", ", ".join(names) + "."),
    ]
    return Picture(canvas.image(), [turns])


def surface(rng, i) -> Picture:
    size = 400
    y, x = np.mgrid[0:size, 0:size]
    noise = fbm(rng, size, size, 5, 7, 0.55)
    if i % 4 == 0:
        rings = np.sin((np.hypot(x * 0.25 - 40, y - 210) + 60 * noise) / 5) * 0.5 + 0.5
        pixels, name = (
            ramp(0.7 * rings + 0.3 * fbm(rng, size, size, 60, 2, 0.5, 0.1), [(0, "#5d3a1e"), (1, "#c08a55")]),
            "Wood, with its growth rings cut lengthwise.",
        )
    elif i % 4 == 1:
        veins = np.abs(np.sin((x + y * 0.6) / 60 + 9 * noise)) ** 0.35
        pixels, name = (
            ramp(veins, [(0, "#5c6670"), (0.55, "#cdd3d6"), (1, "#f4f4f2")]),
            "Polished marble, white with grey veins.",
        )
    elif i % 4 == 2:
        row = y // 40
        column = (x + 40 * (row % 2)) // 80
        tone = rng.uniform(0.75, 1.15, (size, size))[row, column]
        joint = (y % 40 < 4) | ((x + 40 * (row % 2)) % 80 < 4)
        brick = np.array(rgb("#a4503a"), float) * (tone * (0.8 + 0.4 * fbm(rng, size, size, 40, 4, 0.7)))[..., None]
        pixels, name = (
            np.where(joint[..., None], np.array(rgb("#c9c1b6"), float) * (0.85 + 0.3 * noise)[..., None], brick),
            "A brick wall: red bricks in light mortar, each row shifted by half a brick.",
        )
    else:
        thread = 0.72 + 0.28 * np.sin(x * 1.2) * np.sign(np.sin(x * 0.6)) * np.sin(y * 1.2)
        band = ((x // 50) % 2 + (y // 50) % 2) / 2
        pixels, name = (
            ramp(band, [(0, "#f2ede0"), (0.5, "#b8434a"), (1, "#5b1620")]) * thread[..., None],
            "Woven cloth with a chequered pattern of dark red, red and cream.",
        )
    return Picture(to_image(pixels, None, rng, 2), [[("What material is this?", name)]])


def photograph(rng, i) -> Picture:
    """Commodore Grace Hopper, photographed by the US Navy: public domain (see the set's README)."""
    image = Image.open(PHOTOGRAPH).convert("RGB")
    crop = [(0, 0, 512, 600), (130, 10, 400, 350), (40, 340, 512, 600)][i % 3]
    image = image.crop(crop)
    if i % 3 == 1:
        image = image.convert("L").convert("RGB").filter(ImageFilter.UnsharpMask(1, 60))
    conversations = [
        [
            [
                (
                    "Describe the photograph in detail.",
                    "It is a formal portrait of an elderly woman in a dark naval uniform. She wears a black and white officer's cap with "
                    "a badge, glasses with a dark upper rim, a white collar and a black tie. A name tag is pinned to the left side of the "
                    "picture and several rows of coloured ribbons to the right. Behind her, on the left, hangs a flag with white stars on "
                    "blue and red and white stripes; the rest of the background is plain blue. She looks into the camera with a faint smile.",
                )
            ],
            [
                ("What does the name tag say?", "COMO HOPPER"),
                (
                    "What is in the background?",
                    "A flag with stars and stripes and gold fringe, in front of a blue backdrop.",
                ),
                ("Is the person wearing glasses?", "Yes."),
            ],
        ],
        [
            [
                ("Is this photograph in colour?", "No, it is black and white."),
                (
                    "What is the person wearing on her head?",
                    "An officer's cap with an emblem in front and embroidered leaves on the peak.",
                ),
            ]
        ],
        [
            [
                (
                    "What can be seen on the chest of the uniform?",
                    "A name tag on the left of the picture, several ribbons in bright colours on the right, and a gold button in the middle under the black tie.",
                ),
                ("Was trägt die Person unter der Jacke?", "Ein weißes Hemd mit einer schwarzen Krawatte."),
            ]
        ],
    ][i % 3]
    return Picture(image, conversations)


def aquarium(rng, i) -> Picture:
    width, height = 560, [380, 440][i % 2]
    y, x = np.mgrid[0:height, 0:width]
    pixels = ramp(y / height, [(0, "#5ec8e5"), (0.5, "#1f7ea8"), (1, "#0b3a5e")])
    for _ in range(7):
        centre, lean = rng.uniform(0, width), rng.uniform(0.2, 0.5)
        pixels = blend(
            pixels, (215, 245, 255), np.exp(-(((x - centre - lean * y) / 22) ** 2)) * 0.24 * (1 - y / height)
        )
    floor = ridge(rng, width, height * 0.93, height * 0.09, 4)
    sand = ramp(fbm(rng, width, height, 50, 3, 0.7), [(0, "#a98b57"), (1, "#ecd8a6")])
    pixels = np.where((y > floor[None])[..., None], sand, pixels)
    canvas = Canvas(width, height, image=to_image(pixels))
    for cx in rng.uniform(20, width - 20, 7):
        tall, sway = rng.uniform(60, 170), rng.uniform(0, 6)
        stalk = [(cx + 9 * math.sin(k / 2 + sway), height - 22 - tall * k / 12) for k in range(13)]
        canvas.line(stalk, str(rng.choice(["#2d7d46", "#4a9c5d", "#7a9e3b"])), 7)
    kinds = {"orange": "#ff7f11", "yellow": "#ffd23f", "blue": "#3a6ff7", "red": "#e5383b"}
    names = [str(n) for n in rng.choice(list(kinds), [4, 6][i % 2])]
    spots: list[tuple[float, float]] = []
    while len(spots) < len(names):
        p = (float(rng.uniform(70, width - 70)), float(rng.uniform(50, height - 120)))
        if all(math.hypot((p[0] - q[0]) / 1.6, p[1] - q[1]) > 62 for q in spots):
            spots.append(p)
    right = 0
    for name, (fx, fy) in zip(names, spots):
        s, d = rng.uniform(0.8, 1.3), int(rng.choice([-1, 1]))
        right += d == 1
        c = kinds[name]
        canvas.poly(
            [
                (fx - d * 30 * s, fy),
                (fx - d * 56 * s, fy - 20 * s),
                (fx - d * 48 * s, fy),
                (fx - d * 56 * s, fy + 20 * s),
            ],
            lerp(c, "black", 0.15),
        )
        canvas.poly(
            [(fx - 12 * s, fy - 16 * s), (fx + 10 * s, fy - 17 * s), (fx - d * 12 * s, fy - 33 * s)],
            lerp(c, "black", 0.15),
        )
        canvas.circle(fx, fy, 36 * s, fill=c, ry=21 * s)
        for k in (-8, 8):
            canvas.line([(fx + k * s, fy - 19 * s), (fx + k * s, fy + 19 * s)], (255, 255, 255, 190), 4 * s)
        canvas.circle(fx + d * 22 * s, fy - 5 * s, 5.5 * s, fill="white")
        canvas.circle(fx + d * 23 * s, fy - 5 * s, 2.8 * s, fill="black")
        canvas.arc(fx + d * 24 * s, fy + 6 * s, 5 * s, 20, 160, "#333", 1.3)
    for _ in range(26):
        canvas.circle(
            rng.uniform(10, width - 10),
            rng.uniform(10, height - 60),
            rng.uniform(2, 6),
            outline=(230, 250, 255, 190),
            width=1.2,
        )
    blue = names.count("blue")
    low = names[int(np.argmax([p[1] for p in spots]))]
    turns = [
        [
            ("How many fish are swimming here?", str(len(names))),
            ("How many of them swim to the right?", str(right)),
            ("What colour is the lowest fish?", low.capitalize() + "."),
        ],
        [
            ("Combien de poissons y a-t-il ?", f"Il y a {len(names)} poissons."),
            ("Combien sont bleus ?", "Aucun." if not blue else f"{blue}."),
        ],
    ][i % 2]
    return Picture(canvas.image(), [turns])


DRAWINGS = [(aquarium, 2), (balls, 4), (still_life, 2), (surface, 4), (photograph, 3)]
