"""Pictures and questions for the tiny Qwen2.5-VL, which ask for more than naming: the same for the same seed.

``scene(seed)`` gives one 96x96 RGB picture and up to three (question, answer, task) turns about it: counting one kind,
comparing counts, reading two numbers, comparing them, and putting them in order.
"""

import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[1] / "tiny-vlm"))
from conversations import conversation as conversation_about
from scenes import CLASSES, CORNERS, SIZE, background, fonts, paste

Turns = list[tuple[str, str, str]]


def _counts(rng: random.Random, picture: Image.Image) -> Turns:
    names, total = rng.sample(CLASSES, 2), rng.randint(2, 4)
    shown = [rng.choice(names) for _ in range(total)]
    for cell, name in zip(rng.sample(range(4), total), shown):
        paste(picture, name, (cell % 2) * 48, (cell // 2) * 48, 48, rng)
    counts = [shown.count(name) for name in names]
    more = names[0] if counts[0] > counts[1] else names[1] if counts[1] > counts[0] else "same"
    return [
        *((f"how many {name} ?", str(count), "count") for name, count in zip(names, counts)),
        *((f"are there more {a} or {b} ?", more, "compare") for a, b in (names, names[::-1])),
        ("how many in all ?", str(total), "total"),
    ]


def _numbers(rng: random.Random, picture: Image.Image) -> Turns:
    numbers = [10 * tens + rng.randrange(10) for tens in rng.sample(range(1, 10), 2)]
    draw, fill = ImageDraw.Draw(picture), tuple(rng.randint(0, 110) for _ in range(3))
    font = ImageFont.truetype(rng.choice(fonts()), rng.randint(28, 36))
    for line, number in enumerate(numbers):
        left, top, right, bottom = draw.textbbox((0, 0), str(number), font=font)
        x = rng.randint(2, SIZE - (right - left) - 2) - left
        y = SIZE // 2 * line + rng.randint(2, SIZE // 2 - (bottom - top) - 2) - top
        draw.text((x, y), str(number), font=font, fill=fill)
    read = [" ".join(str(number)) for number in numbers]
    return [
        *((f"read the {line} number .", digits, "line") for line, digits in zip(("top", "bottom"), read)),
        ("which number is larger ?", max(read), "larger"),
        ("read the numbers in order .", " , ".join(sorted(read)), "order"),
    ]


def _places(rng: random.Random, picture: Image.Image) -> Turns:
    names = rng.sample(CLASSES, 4)
    for i, name in enumerate(names):
        paste(picture, name, (i % 2) * 48, (i // 2) * 48, 48, rng)
    return [(f"what is in the {corner} ?", name, "corner") for corner, name in zip(CORNERS, names)]


def scene(seed: int, each: int = 1, weights: Sequence[float] = (4, 4, 1)) -> tuple[Image.Image, Turns]:
    """One picture and its (question, answer, task) turns in random order.

    ``each``: questions of a task, if there are as many; ``weights``: how often counts, numbers and places are asked.
    """
    rng = random.Random(seed)
    kind = rng.choices([_counts, _numbers, _places], weights)[0]
    picture = background(rng)
    turns = kind(rng, picture)
    rng.shuffle(turns)
    asked: Counter[str] = Counter()
    return picture, [turn for turn in turns if asked.update([turn[2]]) or asked[turn[2]] <= each]


def conversation(seed: int) -> list[dict[str, Any]]:
    """The same as chat messages; the assistant's messages carry their task."""
    return conversation_about(seed, scene)
