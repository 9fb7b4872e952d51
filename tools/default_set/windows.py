# ruff: noqa: E501
"""Screens of a computer: editors, terminals, dashboards, calendars."""

from __future__ import annotations

import json

import numpy as np
from canvas import Canvas, Picture, lerp

CODES = [
    (
        "mean.py",
        [
            "def mean(values):",
            "    total = 0",
            "    for v in values:",
            "        total += v",
            "    return total / len(values)",
            "",
            "print(mean([2, 4, 9]))",
        ],
        [
            ("What does this program print?", "5.0"),
            (
                "What goes wrong when the list is empty?",
                "`len(values)` is then 0, so the last line of the function divides by zero and Python raises a ZeroDivisionError. A check such as `if not values: raise ValueError(...)` would give a clearer error.",
            ),
        ],
    ),
    (
        "count.js",
        [
            "const words = text.split(' ');",
            "const seen = {};",
            "for (const w of words) {",
            "  seen[w] = (seen[w] || 0) + 1;",
            "}",
            "console.log(seen);",
        ],
        [
            (
                "Explain the code.",
                "It splits a text into words and counts how often each one occurs. The counts are collected in the object `seen`, which is printed at the end.",
            ),
            ("What language is this?", "JavaScript"),
        ],
    ),
    (
        "users.sql",
        [
            "SELECT city, COUNT(*) AS n",
            "FROM users",
            "WHERE active = TRUE",
            "GROUP BY city",
            "HAVING COUNT(*) > 100",
            "ORDER BY n DESC;",
        ],
        [
            (
                "What does the query return?",
                "The cities that have more than 100 active users, with the number of users in each, the largest first.",
            ),
            (
                "Transcribe the code.",
                "SELECT city, COUNT(*) AS n\nFROM users\nWHERE active = TRUE\nGROUP BY city\nHAVING COUNT(*) > 100\nORDER BY n DESC;",
            ),
        ],
    ),
]
KEYWORDS = {
    "def",
    "for",
    "in",
    "return",
    "const",
    "of",
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP",
    "BY",
    "HAVING",
    "ORDER",
    "AS",
    "DESC;",
    "TRUE",
}


def code_editor(rng, i) -> Picture:
    name, lines, turns = CODES[i % 3]
    back, ink, key, number, side = [
        ("#1e1e1e", "#d4d4d4", "#c586c0", "#b5cea8", "#252526"),
        ("#fdf6e3", "#586e75", "#859900", "#2aa198", "#eee8d5"),
        ("#282a36", "#f8f8f2", "#ff79c6", "#bd93f9", "#21222c"),
    ][i % 3]
    canvas = Canvas(560, 330, back)
    canvas.rect(0, 0, 560, 34, fill=side)
    for k, colour in enumerate(("#ff5f57", "#febc2e", "#28c840")):
        canvas.circle(20 + 20 * k, 17, 6, fill=colour)
    canvas.rect(90, 6, 220, 34, fill=back)
    canvas.text(155, 20, name, 13, ink, anchor="mm")
    for k, line in enumerate(lines):
        y = 60 + 30 * k
        canvas.text(36, y, str(k + 1), 14, lerp(back, ink, 0.4), "mono", "rm")
        x = 56.0
        for word in line.split(" "):
            colour = key if word in KEYWORDS else number if word.strip("[](),;").isdigit() else ink
            x += canvas.text(x, y, word + " ", 15, colour, "mono", "lm")
    canvas.rect(0, 308, 560, 330, fill="#007acc")
    canvas.text(14, 319, "main    0 errors", 11, "white", anchor="lm")
    canvas.text(546, 319, f"Ln {rng.integers(1, 7)}, Col {rng.integers(1, 30)}   UTF-8", 11, "white", anchor="rm")
    return Picture(canvas.image(), [turns])


def terminal(rng, i) -> Picture:
    files = [("notes.txt", 1204), ("photo.png", 482113), ("report.pdf", 98230), ("todo.md", 310)]
    lines = [("$ ls -l", 1)] + [(f"-rw-r--r--  1 kim  {size:>7}  {name}", 0) for name, size in files]
    lines += [
        ("$ wc -l todo.md", 1),
        ("12 todo.md", 0),
        ("$ python train.py", 1),
        ("FileNotFoundError: 'data.csv'", 2),
        ("$ _", 1),
    ]
    canvas = Canvas(500, 340, "#0c0c0c")
    for k, (line, kind) in enumerate(lines):
        canvas.text(14, 22 + 30 * k, line, 15, ["#cccccc", "#5af78e", "#ff6b68"][kind], "mono", "lm")
    return Picture(
        canvas.image(),
        [
            [
                (
                    "Why did the last program fail?",
                    "It could not find the file data.csv. The listing above shows that there is no such file in the directory.",
                ),
                ("Which file is the largest?", "photo.png"),
                ("How many lines does todo.md have?", "12"),
            ]
        ],
    )


def dashboard(rng, i) -> Picture:
    numbers = [
        ("Revenue", f"${rng.integers(20, 90)}.{rng.integers(0, 9)}k", 1),
        ("Orders", f"{rng.integers(300, 999)}", 1),
        ("Returns", f"{rng.integers(10, 60)}", -1),
    ]
    back, card, ink = [("#f4f6fa", "white", "#1f2937"), ("#111827", "#1f2937", "#f3f4f6")][i % 2]
    accent = ["#4f46e5", "#22d3ee"][i % 2]
    changes = rng.integers(1, 25, 3)
    canvas = Canvas(720, 460, back)
    canvas.rect(0, 0, 130, 460, fill=["#1e1b4b", "#0b1120"][i % 2])
    for k, name in enumerate(("Overview", "Orders", "Products", "Customers", "Settings")):
        if k == 0:
            canvas.rect(10, 62, 120, 94, fill=accent, radius=8)
        canvas.text(24, 78 + 42 * k, name, 13, "white" if k == 0 else "#a5b0c5", anchor="lm")
    canvas.text(24, 30, "shopkit", 18, "white", "bold", "lm")
    for k, ((name, value, sign), change) in enumerate(zip(numbers, changes)):
        x = 150 + 188 * k
        canvas.rect(x, 24, x + 174, 118, fill=card, radius=12)
        canvas.text(x + 16, 46, name, 12, "#8b95a5", anchor="lm")
        canvas.text(x + 16, 74, value, 26, ink, "bold", "lm")
        canvas.text(
            x + 16,
            101,
            f"{'▲' if sign > 0 else '▼'} {change} % vs last month",
            11,
            "#16a34a" if sign > 0 else "#dc2626",
            anchor="lm",
        )
    canvas.rect(150, 134, 526, 436, fill=card, radius=12)
    canvas.text(168, 156, "Sales per day", 14, ink, "bold", "lm")
    week = rng.integers(20, 100, 7)
    for k, (value, day) in enumerate(zip(week, ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su"))):
        x = 178 + 49 * k
        canvas.rect(
            x,
            400 - 2.1 * value,
            x + 30,
            400,
            fill=accent if value == week.max() else lerp(accent, card, 0.55),
            radius=5,
        )
        canvas.text(x + 15, 418, day, 12, "#8b95a5", anchor="mm")
    canvas.rect(538, 134, 700, 436, fill=card, radius=12)
    share = int(rng.integers(30, 85))
    canvas.text(556, 156, "Monthly goal", 14, ink, "bold", "lm")
    canvas.arc(619, 268, 60, 0, 360, lerp(accent, card, 0.8), 15)
    canvas.arc(619, 268, 60, -90, -90 + 3.6 * share, accent, 15)
    canvas.text(619, 268, f"{share}%", 26, ink, "bold", "mm")
    canvas.text(619, 366, f"{100 - share}% to go", 13, "#8b95a5", anchor="mm")
    day = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"][int(week.argmax())]
    record = {name.lower(): value for name, value, _ in numbers} | {"monthly_goal_percent": share}
    return Picture(
        canvas.image(),
        [
            [
                ("On which day were sales best?", day),
                ("How far along is the monthly goal?", f"{share}%"),
                (
                    "Which figure fell compared with last month?",
                    f"Returns, by {changes[2]} %. Revenue and orders rose.",
                ),
            ],
            [("Collect the key figures of this dashboard as JSON.", json.dumps(record))],
        ],
    )


def calendar_screen(rng, i) -> Picture:
    month, offset, days = [("May 2025", 3, 31), ("Februar 2026", 6, 28)][i % 2]
    marks = {int(d): k for k, d in enumerate(rng.choice(np.arange(2, 28), 4, replace=False))}
    events = [["Dentist", "Concert", "Exam", "Picnic"], ["Zahnarzt", "Konzert", "Prüfung", "Ausflug"]][i % 2]
    colours = ["#ef476f", "#118ab2", "#f4a100", "#06a77d"]
    canvas = Canvas(460, 440)
    canvas.text(24, 36, month, 24, "#222", "bold", "lm")
    for k, name in enumerate(
        [["Mo", "Tu", "We", "Th", "Fr", "Sa", "Su"], ["Mo", "Di", "Mi", "Do", "Fr", "Sa", "So"]][i % 2]
    ):
        canvas.text(54 + 59 * k, 76, name, 13, "#8a8a8a" if k < 5 else "#c0392b", "bold", "mm")
    for d in range(1, days + 1):
        column, row = (d + offset - 1) % 7, (d + offset - 1) // 7
        x, y = 54 + 59 * column, 112 + 50 * row
        if d in marks:
            canvas.circle(x, y, 19, fill=colours[marks[d]])
        canvas.text(x, y, str(d), 15, "white" if d in marks else "#222", anchor="mm")
    for k, name in enumerate(events):
        canvas.circle(34 + 108 * k, 415, 6, fill=colours[k])
        canvas.text(46 + 108 * k, 415, name, 13, anchor="lm")
    when = {events[k]: d for d, k in marks.items()}
    week = [
        ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
        ["Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag"],
    ][i % 2]
    names = {e: week[(d + offset - 1) % 7] for e, d in when.items()}
    if i % 2:
        turns = [
            ("Wann ist die Prüfung?", f"Am {names['Prüfung']}, dem {when['Prüfung']}. Februar 2026."),
            (
                "Was kommt zuerst, das Konzert oder der Ausflug?",
                "Das Konzert." if when["Konzert"] < when["Ausflug"] else "Der Ausflug.",
            ),
        ]
    else:
        turns = [
            ("On what day is the concert?", f"On {names['Concert']}, {when['Concert']} May."),
            (
                "List all the events in order.",
                "; ".join(f"{d} May: {e}" for e, d in sorted(when.items(), key=lambda p: p[1])) + ".",
            ),
        ]
    return Picture(canvas.image(), [turns])


DRAWINGS = [(code_editor, 3), (terminal, 1), (dashboard, 2), (calendar_screen, 2)]
