# ruff: noqa: E501
"""Diagrams: flows, trees, networks, sets, schedules."""

from __future__ import annotations

import math

import numpy as np
from canvas import Canvas, Picture, lerp

FLOWS = [
    (
        ["Order received", "In stock?", "Pack parcel", "Ask supplier", "Ship", "Tell customer"],
        "What happens when the item is not in stock?",
        "The supplier is asked, and then the customer is told.",
        "Summarise the process in one sentence.",
        "After an order is received the stock is checked: an item that is there is packed and shipped, otherwise the "
        "supplier is asked and the customer is told.",
    ),
    (
        ["Commit pushed", "Tests pass?", "Build image", "Notify author", "Deploy", "Wait for fix"],
        "When is the image built?",
        "Only if the tests pass.",
        "What follows a failing test?",
        "The author is notified, and the process then waits for a fix.",
    ),
    (
        ["Lamp is dark", "Plugged in?", "Change bulb", "Plug it in", "Still dark? Repair", "Lamp works"],
        "The lamp is plugged in but dark. What should I try first?",
        "Change the bulb. If it is still dark, have it repaired.",
        "What shape is the decision?",
        "A diamond.",
    ),
]


def _box(canvas, x, y, text, fill, w=150, h=46, ink="#1b2530", radius=8, size=13):
    canvas.rect(x - w / 2 + 2, y - h / 2 + 3, x + w / 2 + 2, y + h / 2 + 3, fill=(0, 0, 0, 40), radius=radius)
    canvas.rect(
        x - w / 2,
        y - h / 2,
        x + w / 2,
        y + h / 2,
        fill=fill,
        outline=lerp(fill, "black", 0.4),
        width=1.3,
        radius=radius,
    )
    canvas.text(x, y, text, size, ink, anchor="mm")


def flowchart(rng, i) -> Picture:
    names, *asked = FLOWS[i % 3]
    tint = ["#cfe8ff", "#d9f2d9", "#ffe9c7"][i % 3]
    canvas = Canvas(480, 470)
    ink = "#33414f"
    for line in (
        [(240, 70), (240, 112)],
        [(152, 168), (110, 168), (110, 262)],
        [(328, 168), (370, 168), (370, 262)],
        [(110, 308), (110, 382)],
        [(370, 308), (370, 382)],
    ):
        canvas.arrow(line, ink)
    canvas.text(136, 156, "yes", 13, ink, "oblique", "mm")
    canvas.text(346, 156, "no", 13, ink, "oblique", "mm")
    _box(canvas, 240, 46, names[0], tint, radius=22)
    canvas.poly([(240, 114), (328, 168), (240, 222), (152, 168)], fill="#fff6bf", outline="#8d7b1e", width=1.3)
    canvas.text(240, 168, names[1], 13, anchor="mm")
    for k, (x, y) in enumerate(((110, 286), (370, 286), (110, 406), (370, 406))):
        _box(canvas, x, y, names[2 + k], tint)
    return Picture(canvas.image(), [[(asked[0], asked[1]), (asked[2], asked[3])]])


def tree(rng, i) -> Picture:
    top, middle, leaves = [
        (
            "Director",
            ["Research", "Production", "Sales"],
            [["Physics", "Design"], ["Foundry", "Assembly"], ["Europe", "Asia"]],
        ),
        ("Vertebrates", ["Fish", "Birds", "Mammals"], [["Carp", "Pike"], ["Owl", "Heron"], ["Bat", "Seal"]]),
    ][i % 2]
    canvas = Canvas(620, 330, "#fbfbfd")
    colours = ["#ffd6a5", "#caffbf", "#bdb2ff"]
    for k, name in enumerate(middle):
        x = 110 + 200 * k
        canvas.line([(310, 66), (310, 108), (x, 108), (x, 150)], "#56606b", 1.5)
        for j, leaf in enumerate(leaves[k]):
            lx = x - 48 + 96 * j
            canvas.line([(x, 170), (x, 214), (lx, 214), (lx, 250)], "#56606b", 1.5)
            _box(canvas, lx, 268, leaf, "#ffffff", w=84, h=36, size=12)
        _box(canvas, x, 166, name, colours[k], w=120, h=40)
    _box(canvas, 310, 48, top, "#a0c4ff", w=150, h=44, size=15)
    turns = [
        [
            ("Which departments report to Production?", "The foundry and the assembly."),
            ("How many boxes are in the lowest row?", "6"),
        ],
        [
            ("List the mammals in this tree.", "Bat and seal."),
            (
                "Turn the tree into a nested list.",
                "- Vertebrates\n  - Fish\n    - Carp\n    - Pike\n  - Birds\n    - Owl\n    - Heron\n  - Mammals\n    - Bat\n    - Seal",
            ),
        ],
    ][i % 2]
    return Picture(canvas.image(), [turns])


def gantt(rng, i) -> Picture:
    tasks = [["Survey", "Foundation", "Walls", "Roof", "Interior"], ["Read", "Sketch", "Write", "Review", "Print"]][
        i % 2
    ]
    starts = np.cumsum([0, *rng.integers(1, 3, 4)])
    lengths = rng.integers(2, 5, 5)
    canvas = Canvas(600, 310)
    canvas.text(20, 28, ["Building plan", "Making of the yearbook"][i % 2], 17, "#222", "bold", "lm")
    weeks = int((starts + lengths).max())
    step = 470 / weeks
    for w in range(weeks + 1):
        canvas.line([(115 + step * w, 58), (115 + step * w, 290)], "#e0e4e8", 1)
        if w < weeks:
            canvas.text(115 + step * (w + 0.5), 50, f"{w + 1}", 11, "#666", anchor="mm")
    canvas.text(100, 50, "week", 11, "#666", anchor="rm")
    for k, (task, start, length) in enumerate(zip(tasks, starts, lengths)):
        y = 84 + 44 * k
        canvas.text(100, y, task, 13, anchor="rm")
        colour = ["#264653", "#2a9d8f", "#e9c46a", "#f4a261", "#e76f51"][k]
        canvas.rect(115 + step * start, y - 13, 115 + step * (start + length), y + 13, fill=colour, radius=5)
    long = [t for t, n in zip(tasks, lengths) if n == lengths.max()]
    return Picture(
        canvas.image(),
        [
            [
                (f"In which week does “{tasks[2]}” begin?", f"In week {starts[2] + 1}."),
                (
                    "Which task takes longest?",
                    f"{' and '.join([', '.join(long[:-1]), long[-1]] if long[1:] else long)}, with {lengths.max()} weeks.",
                ),
                ("How many weeks does the whole plan span?", str(weeks)),
            ]
        ],
    )


def sequence_diagram(rng, i) -> Picture:
    actors = [["Browser", "Server", "Database"], ["Guest", "Waiter", "Kitchen"]][i % 2]
    calls = [
        [
            (0, 1, "GET /orders/17"),
            (1, 2, "SELECT order"),
            (2, 1, "row"),
            (1, 0, "200 OK (JSON)"),
            (0, 0, "render page"),
        ],
        [(0, 1, "orders soup"), (1, 2, "passes order"), (2, 1, "soup is ready"), (1, 0, "serves soup"), (0, 1, "pays")],
    ][i % 2]
    canvas = Canvas(540, 400)
    xs = [90, 270, 450]
    for x, name in zip(xs, actors):
        canvas.line([(x, 60), (x, 380)], "#9aa7b3", 1.3, dash=5)
        _box(canvas, x, 40, name, ["#dbeafe", "#fde2e4"][i % 2], w=120, h=38, size=15)
    for k, (a, b, label) in enumerate(calls):
        y = 104 + 56 * k
        if a == b:
            canvas.arrow([(xs[a], y), (xs[a] + 50, y), (xs[a] + 50, y + 24), (xs[a] + 2, y + 24)], "#334155")
            canvas.text(xs[a] + 58, y + 12, label, 13, anchor="lm")
        else:
            canvas.arrow([(xs[a], y), (xs[b], y)], "#334155", dash=6 if b < a else 0)
            canvas.text((xs[a] + xs[b]) / 2, y - 11, label, 13, anchor="mm")
    turns = [
        [
            (
                "What does the server do before it answers?",
                "It asks the database for the order with a SELECT and gets back a row.",
            ),
            (
                "Write the messages as a numbered list.",
                "1. Browser → Server: GET /orders/17\n2. Server → Database: SELECT order\n"
                "3. Database → Server: row\n4. Server → Browser: 200 OK (JSON)\n5. Browser: render page",
            ),
        ],
        [
            ("What is the last message in this diagram?", "The guest pays the waiter."),
            (
                "Does the guest ever speak to the kitchen directly?",
                "No. Everything between them goes through the waiter.",
            ),
        ],
    ][i % 2]
    return Picture(canvas.image(), [turns])


def circuit_and_cycle(rng, i) -> Picture:
    canvas = Canvas(440, 360)
    if i % 2 == 0:
        volts, ohms = int(rng.choice([6, 12, 24])), int(rng.choice([2, 3, 4, 6]))
        canvas.line([(90, 150), (90, 70), (350, 70), (350, 130)], "#222", 2)
        canvas.line([(350, 230), (350, 290), (90, 290), (90, 176)], "#222", 2)
        canvas.line([(60, 150), (120, 150)], "#222", 2.5)
        canvas.line([(75, 176), (105, 176)], "#222", 5)
        canvas.rect(334, 130, 366, 230, fill="white", outline="#222", width=2)
        canvas.text(52, 163, f"{volts} V", 16, anchor="rm")
        canvas.text(380, 180, f"{ohms} Ω", 18, anchor="lm")
        canvas.circle(220, 70, 22, fill="white", outline="#222", width=2)
        canvas.text(220, 70, "A", 18, face="bold", anchor="mm")
        turns = [
            (
                "What current does the ammeter show?",
                f"By Ohm's law I = U / R = {volts} V / {ohms} Ω = {volts / ohms:g} A.",
            ),
            ("What does the rectangle stand for?", "A resistor."),
        ]
    else:
        names = ["Egg", "Caterpillar", "Pupa", "Butterfly"]
        for k, name in enumerate(names):
            a = math.pi / 2 * k - math.pi / 2
            canvas.arc(220, 180, 118, math.degrees(a) + 24, math.degrees(a) + 62, "#4c956c", 4)
            e = a + math.radians(64)
            x, y = 220 + 118 * math.cos(e), 180 + 118 * math.sin(e)
            t = (-math.sin(e), math.cos(e))
            canvas.poly(
                [
                    (x + 12 * t[0], y + 12 * t[1]),
                    (x + 8 * math.cos(e), y + 8 * math.sin(e)),
                    (x - 8 * math.cos(e), y - 8 * math.sin(e)),
                ],
                fill="#4c956c",
            )
            _box(canvas, 220 + 130 * math.cos(a), 180 + 130 * math.sin(a), name, "#fefae0", w=112, h=38, size=14)
        canvas.text(220, 180, "Life cycle", 17, "#344e41", "bold", "mm")
        turns = [
            ("What comes after the caterpillar?", "The pupa."),
            (
                "チョウの一生を順番に説明してください。",
                "卵から幼虫（いも虫）がかえり、さなぎになり、最後に成虫のチョウになります。そしてまた卵を産みます。",
            ),
        ]
    return Picture(canvas.image(), [turns])


DRAWINGS = [(flowchart, 3), (tree, 2), (gantt, 2), (sequence_diagram, 2), (circuit_and_cycle, 2)]
