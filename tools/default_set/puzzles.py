# ruff: noqa: E501
"""Clocks, dice, boards, signs and sums."""

from __future__ import annotations

import math

from canvas import Canvas, Picture


def clock(rng, i) -> Picture:
    hour, minute = int(rng.integers(1, 12)), int(5 * rng.integers(0, 12))
    canvas = Canvas(360, 360, ["#efe6dd", "#2b2d42", "#d8e2dc"][i % 3])
    face, ink = [("#ffffff", "#222222"), ("#1a1b2e", "#edf2f4"), ("#fff8e7", "#3d2b1f")][i % 3]
    canvas.circle(184, 188, 152, fill=(0, 0, 0, 50))
    canvas.circle(180, 180, 152, fill=["#8d5b3f", "#8d99ae", "#b08968"][i % 3])
    canvas.circle(180, 180, 138, fill=face)
    numerals = (
        ["XII", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI"]
        if i % 3 == 2
        else ["12", *map(str, range(1, 12))]
    )
    for k in range(60):
        a = math.radians(6 * k)
        inner = 122 if k % 5 == 0 else 129
        canvas.line(
            [
                (180 + inner * math.sin(a), 180 - inner * math.cos(a)),
                (180 + 134 * math.sin(a), 180 - 134 * math.cos(a)),
            ],
            ink,
            3 if k % 5 == 0 else 1,
        )
        if k % 5 == 0:
            canvas.text(180 + 104 * math.sin(a), 180 - 104 * math.cos(a), numerals[k // 5], 20, ink, "serifbold", "mm")
    for angle, length, width in ((30 * (hour + minute / 60), 66, 8), (6 * minute, 104, 5)):
        a = math.radians(angle)
        canvas.line(
            [
                (180 - 16 * math.sin(a), 180 + 16 * math.cos(a)),
                (180 + length * math.sin(a), 180 - length * math.cos(a)),
            ],
            ink,
            width,
        )
    canvas.circle(180, 180, 9, fill="#d62828")
    later = (hour * 60 + minute + 45 - 60) % 720 + 60
    turns = [
        ("What time does the clock show?", f"{hour}:{minute:02d}"),
        ("What time will it be in 45 minutes?", f"{later // 60}:{later % 60:02d}"),
    ]
    if i % 3 == 1:
        turns = [("¿Qué hora marca el reloj?", f"Las {hour}:{minute:02d}." if hour > 1 else f"La 1:{minute:02d}.")]
    return Picture(canvas.image(), [turns])


def dice(rng, i) -> Picture:
    n = [3, 5][i % 2]
    values = rng.integers(1, 7, n)
    canvas = Canvas([420, 560][i % 2], 220)
    canvas.gradient("#1b6b45", "#0f4a2f")
    spots = {1: [(0, 0)], 2: [(-1, -1), (1, 1)], 3: [(-1, -1), (0, 0), (1, 1)], 4: [(-1, -1), (1, 1), (-1, 1), (1, -1)]}
    spots[5] = [*spots[4], (0, 0)]
    spots[6] = [*spots[4], (-1, 0), (1, 0)]
    for k, v in enumerate(values):
        x, y, a = canvas.width * (k + 0.5) / n, 110 + rng.uniform(-24, 24), rng.uniform(-0.5, 0.5)

        def turn(dx, dy, x=x, y=y, a=a):
            return x + dx * math.cos(a) - dy * math.sin(a), y + dx * math.sin(a) + dy * math.cos(a)

        canvas.poly(
            [turn(dx + 5, dy + 7) for dx, dy in ((-38, -38), (38, -38), (38, 38), (-38, 38))], fill=(0, 0, 0, 90)
        )
        canvas.poly(
            [turn(*p) for p in ((-38, -38), (38, -38), (38, 38), (-38, 38))],
            fill=["#fdfdfd", "#c1121f"][i % 2],
            outline="#999",
            width=1,
        )
        for dx, dy in spots[int(v)]:
            canvas.circle(*turn(22 * dx, 22 * dy), 7, fill=["#111", "white"][i % 2])
    return Picture(
        canvas.image(),
        [
            [
                ("What do the dice show, from left to right?", ", ".join(map(str, values)) + "."),
                ("What is their sum?", str(values.sum())),
                (
                    "Is any number rolled more than once?",
                    "Yes." if len(set(values.tolist())) < n else "No, all are different.",
                ),
            ]
        ],
    )


def game_board(rng, i) -> Picture:
    canvas = Canvas(400, 400, ["#f5f0e6", "#ffffff"][i % 2])
    if i % 2 == 0:
        marks = [["X", "O", "X"], ["", "X", "O"], ["O", "", ""]]
        for k in (1, 2):
            canvas.line([(40 + 107 * k, 40), (40 + 107 * k, 360)], "#444", 5)
            canvas.line([(40, 40 + 107 * k), (360, 40 + 107 * k)], "#444", 5)
        for r in range(3):
            for c in range(3):
                x, y = 93 + 107 * c, 93 + 107 * r
                if marks[r][c] == "X":
                    canvas.line([(x - 30, y - 30), (x + 30, y + 30)], "#d62828", 8)
                    canvas.line([(x + 30, y - 30), (x - 30, y + 30)], "#d62828", 8)
                elif marks[r][c]:
                    canvas.circle(x, y, 33, outline="#1d4ed8", width=8)
        turns = [
            (
                "It is X's turn. Which move wins?",
                "The bottom right square. It completes the diagonal from the top left over the middle.",
            ),
            ("How many squares are empty?", "3"),
        ]
    else:
        for r in range(8):
            for c in range(8):
                canvas.rect(
                    30 + 43 * c,
                    14 + 43 * r,
                    73 + 43 * c,
                    57 + 43 * r,
                    fill="#eeeed2" if (r + c) % 2 == 0 else "#769656",
                )
        pieces = {"e1": "♔", "g7": "♚", "d5": "♘", "a8": "♖", "c6": "♟", "f2": "♙", "h5": "♛"}
        for k in range(8):
            canvas.text(51 + 43 * k, 376, "abcdefgh"[k], 14, anchor="mm")
            canvas.text(16, 35 + 43 * k, str(8 - k), 14, anchor="mm")
        for square, piece in pieces.items():
            canvas.text(
                51 + 43 * "abcdefgh".index(square[0]), 36 + 43 * (8 - int(square[1])), piece, 36, "#111", anchor="mm"
            )
        turns = [
            ("On which square is the white king?", "e1"),
            ("Which black pieces are on the board?", "The king on g7, the queen on h5 and a pawn on c6."),
            (
                "Where does the white knight stand, and can the black pawn capture it?",
                "The knight is on d5. A black pawn on c6 captures diagonally downwards, so yes, it could take on d5.",
            ),
        ]
    return Picture(canvas.image(), [turns])


def fractions(rng, i) -> Picture:
    parts, taken = int(rng.integers(5, 10)), 0
    taken = int(rng.integers(2, parts - 1))
    canvas = Canvas(460, 300, ["#fffdf5", "#f0f7f4"][i % 2])
    if i % 2 == 0:
        for k in range(parts):
            canvas.pie(
                230,
                150,
                115,
                360 * k / parts - 90,
                360 * (k + 1) / parts - 90,
                "#f4a261" if k < taken else "white",
                "#5a3b1c",
                2,
            )
    else:
        for k in range(parts):
            canvas.rect(
                30 + 400 * k / parts,
                100,
                30 + 400 * (k + 1) / parts,
                190,
                fill="#52b788" if k < taken else "white",
                outline="#1b4332",
                width=2,
            )
    return Picture(
        canvas.image(),
        [
            [
                ("What fraction is coloured?", f"{taken}/{parts}"),
                (
                    "And what fraction is white?",
                    f"{parts - taken} of the {parts} equal parts are white, so {parts - taken}/{parts}.",
                ),
            ]
        ],
    )


def road_signs(rng, i) -> Picture:
    canvas = Canvas(480, 320)
    canvas.gradient("#bfe0f5", "#eef6fb", (0, 0, 480, 230))
    canvas.rect(0, 230, 480, 320, fill="#6aa84f")
    canvas.poly([(190, 230), (290, 230), (420, 320), (60, 320)], fill="#555b61")
    for x in (110, 370):
        canvas.rect(x - 4, 120, x + 4, 270, fill="#888")
    speed = int(rng.choice([30, 50, 70, 80]))
    canvas.circle(110, 90, 52, fill="#d62828")
    canvas.circle(110, 90, 40, fill="white")
    canvas.text(110, 90, str(speed), 38, "#111", "bold", "mm")
    if i % 2 == 0:
        canvas.poly([(370, 30), (428, 134), (312, 134)], fill="white", outline="#d62828", width=9)
        canvas.text(370, 102, "!", 48, "#111", "bold", "mm")
        turns = [
            (
                "What do the two signs mean?",
                f"The round one on the left limits the speed to {speed}. The triangular one on the right with the exclamation mark warns of a danger ahead.",
            )
        ]
    else:
        a = [math.radians(22.5 + 45 * k) for k in range(8)]
        canvas.poly(
            [(370 + 58 * math.cos(t), 90 + 58 * math.sin(t)) for t in a], fill="#c1121f", outline="white", width=3
        )
        canvas.text(370, 90, "STOP", 28, "white", "bold", "mm")
        turns = [
            ("Quel panneau se trouve à droite ?", "Un panneau « stop » octogonal rouge."),
            ("Quelle est la vitesse limite ?", str(speed)),
        ]
    return Picture(canvas.image(), [turns])


def maths_board(rng, i) -> Picture:
    a, b = int(rng.integers(2, 6)), int(rng.integers(3, 9))
    lines = [
        ["∫ 2x dx = ?"],
        [f"{a * b} ÷ {a} + {b} = ?", "√144 − 7 = ?"],
        [f"x + y = {a + b}", f"x − y = {b - a}"],
        ["1, 1, 2, 3, 5, 8, ?"],
    ][i % 4]
    answers = [
        ("x² + C, because the derivative of x² is 2x."),
        f"The first is {2 * b}, the second is 5.",
        f"Adding the equations gives 2x = {2 * b}, so x = {b}; then y = {a + b} − {b} = {a}.",
        "13. Each number is the sum of the two before it, and 5 + 8 = 13.",
    ]
    canvas = Canvas(500, 130 + 80 * len(lines), "#23483a")
    for _ in range(260):
        x, y = rng.uniform(0, 500), rng.uniform(0, canvas.height)
        canvas.line([(x, y), (x + rng.uniform(20, 90), y + rng.uniform(-10, 10))], (255, 255, 255, 5), 3)
    canvas.rect(0, 0, 500, canvas.height, outline="#8a5a2b", width=12)
    for k, line in enumerate(lines):
        canvas.text(
            250, 65 + canvas.height / 2 - 65 + 80 * (k - (len(lines) - 1) / 2), line, 38, "#f4f4ec", "serif", "mm"
        )
    return Picture(canvas.image(), [[("Solve what is on the blackboard.", answers[i % 4])]])


DRAWINGS = [(clock, 3), (dice, 2), (game_board, 2), (fractions, 2), (road_signs, 2), (maths_board, 4)]
