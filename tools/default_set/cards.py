# ruff: noqa: E501
"""Tables, tickets, menus and notes by hand."""

from __future__ import annotations

import json

import numpy as np
from canvas import Canvas, Picture, handwrite, paper


def table(rng, i) -> Picture:
    kinds = [
        ("League table", ["Team", "Played", "Won", "Drawn", "Points"]),
        ("Departures", ["Time", "Line", "To", "Platform"]),
        ("Nutrition per 100 g", ["", "Oats", "Rice", "Lentils"]),
        ("Staff rota", ["", "Mon", "Tue", "Wed", "Thu", "Fri"]),
    ]
    title, head = kinds[i % 4]
    if i % 4 == 0:
        teams = ["Rovers", "Albion", "Wanderers", "City", "Harriers", "United"]
        won = np.sort(rng.choice(np.arange(3, 20), 6, replace=False))[::-1]
        drawn = rng.integers(0, 3, 6)
        rows = [[t, "24", str(w), str(d), str(3 * w + d)] for t, w, d in zip(teams, won, drawn)]
        turns = [
            ("How many points does the leader have?", rows[0][4]),
            (
                "By how many points does the leader beat the last team?",
                f"{rows[0][0]} has {rows[0][4]} points and {rows[-1][0]} has {rows[-1][4]}, so the gap is "
                f"{int(rows[0][4]) - int(rows[-1][4])} points.",
            ),
        ]
    elif i % 4 == 1:
        towns = ["Ravensholm", "Oakford", "Lake St. Ann", "Port Mary", "Airport", "Millbridge", "Stonegate"]
        minutes = np.sort(rng.choice(np.arange(5, 175, 3), 7, replace=False))
        rows = [
            [f"{9 + m // 60:02d}:{m % 60:02d}", f"S{rng.integers(1, 9)}", t, str(rng.integers(1, 13))]
            for m, t in zip(minutes, towns)
        ]
        turns = [
            (
                "When does the train to the airport leave, and from which platform?",
                f"At {rows[4][0]} from platform {rows[4][3]}.",
            ),
            ("Where does the first train go?", rows[0][2]),
        ]
    elif i % 4 == 2:
        rows = [
            ["Energy (kcal)", "372", "355", "352"],
            ["Protein (g)", "13.5", "7.1", "24.6"],
            ["Fat (g)", "7.0", "0.7", "1.1"],
            ["Fibre (g)", "10.0", "1.3", "10.7"],
            ["Iron (mg)", "4.2", "0.8", "6.5"],
        ]
        turns = [
            ("Which food has the most protein?", "Lentils, with 24.6 g per 100 g."),
            (
                "Write the table as Markdown.",
                "\n".join(
                    ["|  | Oats | Rice | Lentils |", "|---|---|---|---|"] + ["| " + " | ".join(r) + " |" for r in rows]
                ),
            ),
        ]
    else:
        names = ["Amir", "Bea", "Chen", "Dora", "Emil"]
        rows = [[n] + [str(rng.choice(["early", "late", "off"], p=[0.4, 0.4, 0.2])) for _ in range(5)] for n in names]
        off = [n for n, *days in rows if days[2] == "off"]
        early = [n for n, *days in rows if days[0] == "early"]
        turns = [
            ("Who has the early shift on Monday?", ", ".join(early) if early else "Nobody."),
            ("Who is off on Wednesday?", ", ".join(off) if off else "Nobody is off on Wednesday."),
        ]
    dark = i % 4 == 1
    width, row_height = [460, 520, 420, 500][i % 4], 38
    canvas = Canvas(width, 78 + row_height * (len(rows) + 1), "#10151c" if dark else "white")
    ink = "#ffcf40" if dark else "#222222"
    canvas.text(20, 32, title, 20, "#ffffff" if dark else "#1c3d5a", "bold", "lm")
    left = [0.0, *np.cumsum([1.7 if k == (2 if dark else 0) else 1.0 for k in range(len(head))])]
    xs = [20 + (width - 40) * v / left[-1] for v in left]
    for r, row in enumerate([head, *rows]):
        y = 58 + r * row_height
        if r == 0:
            canvas.rect(20, y, width - 20, y + row_height, fill="#1f2a36" if dark else "#1c3d5a")
        elif r % 2 == 0 and not dark:
            canvas.rect(20, y, width - 20, y + row_height, fill="#eef3f7")
        for x, cell in zip(xs, row):
            colour = "white" if r == 0 else {"off": "#b33939", "late": "#8a6d1d", "early": "#2d7d46"}.get(cell, ink)
            canvas.text(
                x + 10, y + row_height / 2, cell, 14, colour, ("mono" if dark else "sans") if r else "bold", "lm"
            )
    return Picture(canvas.image(), [turns])


def ticket(rng, i) -> Picture:
    names, places = (
        ("LOPEZ/MARIA", "NIELSEN/ERIK"),
        (("Madrid", "MAD", "Vienna", "VIE"), ("Bergen", "BGO", "Porto", "OPO")),
    )
    name, (origin, o, target, t) = names[i % 2], places[i % 2]
    flight, gate, seat = (
        f"QX {rng.integers(100, 999)}",
        f"{'ABCD'[rng.integers(4)]}{rng.integers(1, 40)}",
        f"{rng.integers(2, 34)}{'ACDF'[rng.integers(4)]}",
    )
    time = f"{rng.integers(6, 22):02d}:{5 * rng.integers(0, 12):02d}"
    colour = ["#0b6e99", "#a23b2a"][i % 2]
    canvas = Canvas(640, 260, "#cfd6dc")
    canvas.rect(14, 14, 626, 246, fill="white", radius=14)
    canvas.rect(14, 14, 626, 60, fill=colour, radius=14)
    canvas.rect(14, 44, 626, 60, fill=colour)
    canvas.text(34, 37, "BOARDING PASS", 18, "white", "bold", "lm")
    canvas.text(606, 37, flight, 18, "white", "monobold", "rm")
    canvas.line([(470, 62), (470, 246)], "#999", 1.5, dash=5)
    canvas.text(34, 76, "PASSENGER", 10, "#888")
    canvas.text(34, 90, name, 16, face="monobold")
    for x, code, town in ((34, o, origin), (260, t, target)):
        canvas.text(x, 122, code, 44, colour, "bold")
        canvas.text(x, 174, town, 13, "#555")
    canvas.arrow([(160, 148), (240, 148)], colour, 3, 14)
    for x, label, value in (
        (34, "GATE", gate),
        (140, "BOARDING", time),
        (290, "SEAT", seat),
        (380, "CLASS", "ECONOMY"),
    ):
        canvas.text(x, 200, label, 10, "#888")
        canvas.text(x, 213, value, 16, face="monobold")
    bits = rng.random((19, 19)) < 0.5
    for r in range(19):
        for c in range(19):
            if bits[r, c] or r in (0, 18) or c in (0, 18):
                canvas.rect(492 + 6 * c, 92 + 6 * r, 498 + 6 * c, 98 + 6 * r, fill="black")
    canvas.text(549, 226, f"SEAT {seat}", 13, face="monobold", anchor="mm")
    record = {"passenger": name, "flight": flight, "from": o, "to": t, "gate": gate, "boarding": time, "seat": seat}
    return Picture(
        canvas.image(),
        [
            [
                ("Where does this flight go?", f"From {origin} to {target}."),
                ("When must I be at the gate, and which one?", f"Boarding is at {time}, gate {gate}."),
            ],
            [("Give the boarding pass as JSON.", json.dumps(record))],
        ],
    )


MENUS = [
    (
        "Trattoria da Nino",
        [
            ("Zuppa di ceci", 6.5),
            ("Tagliatelle al ragù", 11),
            ("Risotto ai funghi", 12.5),
            ("Pollo al limone", 14),
            ("Panna cotta", 5.5),
        ],
        [
            ("Qual è il piatto più caro?", "Il pollo al limone, che costa 14,00 €."),
            ("Quanto spendo per una zuppa di ceci e una panna cotta?", "6,50 € + 5,50 € = 12,00 €."),
        ],
    ),
    (
        "La Cantina Azul",
        [
            ("Gazpacho", 5.9),
            ("Tortilla de patatas", 7.2),
            ("Pulpo a la gallega", 15.8),
            ("Croquetas caseras", 8.4),
            ("Flan de huevo", 4.6),
        ],
        [
            ("¿Qué postre hay y cuánto cuesta?", "Hay flan de huevo y cuesta 4,60 €."),
            ("¿Cuál es el plato más barato?", "El flan de huevo."),
        ],
    ),
    (
        "The Copper Kettle",
        [
            ("Leek soup", 5.2),
            ("Ploughman's lunch", 9.8),
            ("Mushroom pie", 11.4),
            ("Trout with almonds", 15.6),
            ("Rhubarb crumble", 5.9),
        ],
        [
            (
                "Suggest a two-course vegetarian lunch for under 20 and say what it costs.",
                "Leek soup (5.20) followed by the mushroom pie (11.40) comes to 16.60, and both sound vegetarian, though it is "
                "worth asking what stock the soup is made with.",
            ),
        ],
    ),
]


def menu(rng, i) -> Picture:
    title, dishes, turns = MENUS[i % 3]
    back, ink = [("#2b2b2b", "#f3e9d2"), ("#14405c", "#f6f1e1"), ("#f7f0df", "#4a2c1a")][i % 3]
    canvas = Canvas(400, 480, back)
    canvas.rect(14, 14, 386, 466, outline=ink, width=1.5)
    canvas.rect(20, 20, 380, 460, outline=ink, width=0.7)
    canvas.text(200, 74, title, 30, ink, "timesitalic", "mm")
    canvas.line([(120, 104), (280, 104)], ink)
    canvas.circle(200, 104, 4, fill=ink)
    for k, (dish, price) in enumerate(dishes):
        y = 156 + 56 * k
        width = canvas.text(48, y, dish, 19, ink, "times", "lm")
        canvas.text(352, y, f"{price:.2f}", 19, ink, "times", "rm")
        canvas.line([(56 + width, y + 6), (305, y + 6)], ink, 0.8, dash=3)
    return Picture(canvas.image(), [turns])


NOTES = [
    (
        ["Shopping:", "- 2 lemons", "- butter", "- flour", "- candles!!", "call Ruth at 6"],
        "What should be bought, and what else is on the note?",
        "Two lemons, butter, flour and candles are to be bought. The note also says to call Ruth at 6.",
    ),
    (
        ["Lieber Jan,", "der Schlüssel liegt", "unter der Matte.", "Bitte die Blumen", "gießen. Danke!", "Lena"],
        "Was soll Jan tun?",
        "Er soll die Blumen gießen. Den Schlüssel findet er unter der Matte.",
    ),
    (
        ["Physics, lesson 4", "F = m · a", "m = 5 kg, a = 3 m/s²", "F = 15 N", "(unit: newton!)"],
        "Is the calculation on this note correct?",
        "Yes. By F = m · a, a mass of 5 kg with an acceleration of 3 m/s² needs a force of 5 · 3 = 15 newtons.",
    ),
    (
        ["3x + 7 = 25", "3x = 25 - 7", "3x = 18", "x = 8"],
        "There is a mistake in this solution. Find it.",
        "The mistake is in the last line. From 3x = 18 it follows that x = 18 / 3 = 6, not 8. Check: 3 · 6 + 7 = 25.",
    ),
    (
        ["Γεια σου Μαρία,", "το λεωφορείο φεύγει", "στις 8 το πρωί.", "Μην αργήσεις!", "Νίκος"],
        "Τι ώρα φεύγει το λεωφορείο;",
        "Στις 8 το πρωί.",
    ),
]


def handwritten_note(rng, i) -> Picture:
    lines, question, answer = NOTES[i % 5]
    back = ["#fff3a3", "#ffffff", "#fdfdf7", "#f4f6fb", "#ffe1e6"][i % 5]
    canvas = Canvas(380, 70 + 46 * len(lines), back)
    if i % 5 in (1, 2):
        for y in range(66, canvas.height, 46):
            canvas.line([(0, y), (380, y)], "#b9cdea")
    if i % 5 == 3:
        for k in range(0, 400, 20):
            canvas.line([(k, 0), (k, canvas.height)], "#d5deec", 0.7)
            canvas.line([(0, k), (380, k)], "#d5deec", 0.7)
    for k, line in enumerate(lines):
        handwrite(
            canvas, rng, 28, 62 + 46 * k, line, 31, ["#2b2b6b", "#24408e", "#333333", "#1d2f6f", "#7a1f3d"][i % 5]
        )
    picture = paper(
        canvas.image(), rng, float(rng.uniform(-5, 5)), ["#8a6a4a", "#4b5a52", "#5a4f63", "#9a8f80", "#3f4a5a"][i % 5]
    )
    return Picture(picture, [[(question, answer)], [("Transcribe the handwriting.", "\n".join(lines))]])


DRAWINGS = [(table, 4), (ticket, 2), (menu, 3), (handwritten_note, 5)]
