# ruff: noqa: E501
"""Seen from above: floor plans, metro and street maps."""

from __future__ import annotations

from canvas import Canvas, Picture, lerp


def floor_plan(rng, i) -> Picture:
    canvas = Canvas(520, 400, ["#f7f5ef", "#1d4e89", "#ffffff"][i % 3])
    wall = ["#3a3a3a", "#e8f1ff", "#222222"][i % 3]
    names = [
        ["Living room", "Kitchen", "Bath", "Bedroom", "Hall"],
        ["Office", "Meeting", "WC", "Archive", "Reception"],
        ["Wohnzimmer", "Küche", "Bad", "Schlafzimmer", "Flur"],
    ][i % 3]
    rooms = [(30, 30, 290, 210), (290, 30, 490, 170), (290, 170, 390, 280), (30, 280, 290, 370), (30, 210, 290, 280)]
    rooms.append((390, 170, 490, 280))
    fills = ["#f3e3c3", "#dcebd5", "#d4e6f1", "#f0dbe6", "#eeeeee", "#e8e3d8"]
    for (x0, y0, x1, y1), fill in zip(rooms, fills):
        canvas.rect(x0, y0, x1, y1, fill=None if i % 3 == 1 else fill, outline=wall, width=4)
    canvas.rect(290, 280, 490, 370, fill=None if i % 3 == 1 else "#dfeadf", outline=wall, width=1.5)
    canvas.text(390, 325, ["Balcony", "Terrace", "Balkon"][i % 3], 14, wall, anchor="mm")
    sizes = [26.0, 14.0, 5.5, 11.7, 9.1]
    for name, (x0, y0, x1, y1), size in zip(names, rooms, sizes):
        canvas.text((x0 + x1) / 2, (y0 + y1) / 2 - 9, name, 14, wall, "bold", "mm")
        canvas.text((x0 + x1) / 2, (y0 + y1) / 2 + 11, f"{size:g} m²", 12, wall, anchor="mm")
    canvas.text(440, 225, ["Store", "Server", "Lager"][i % 3], 13, wall, anchor="mm")
    back = ["#f7f5ef", "#1d4e89", "#ffffff"][i % 3]
    for x, y, start in ((44, 210, 0), (290, 235, 180), (236, 280, 0), (290, 110, 180)):
        horizontal = start == 0
        ends = [(x, y), (x + 34, y)] if horizontal else [(x, y), (x, y + 34)]
        canvas.line(ends, back, 6)
        canvas.arc(x, y, 34, 0 if horizontal else 90, 90 if horizontal else 180, wall, 1)
        canvas.line([(x, y), (x, y + 34) if horizontal else (x - 34, y)], wall, 1.5)
    turns = [
        [
            ("Which is the largest room, and how large is it?", "The living room, with 26 m²."),
            ("Is there a way from the hall to the bedroom?", "Yes, a door leads from the hall down into the bedroom."),
        ],
        [
            (
                "Describe this floor plan.",
                "It is the plan of a small office drawn in white lines on blue. At the top left is the "
                "office proper with 26 m², at the top right a meeting room with 14 m². Below them lie the reception, the toilet "
                "and a server room, and at the bottom the archive, with a terrace beside it.",
            )
        ],
        [
            ("Wie groß ist die Küche?", "14 m²."),
            ("Welche Räume sind kleiner als 10 m²?", "Das Bad (5,5 m²) und der Flur (9,1 m²)."),
        ],
    ][i % 3]
    return Picture(canvas.image(), [turns])


def metro_map(rng, i) -> Picture:
    lines = [
        (
            "Red",
            "#d62828",
            [(50, 90), (150, 90), (250, 190), (350, 190), (450, 190)],
            ["Zoo", "Museum", "Central", "Market", "Arena"],
        ),
        (
            "Blue",
            "#1d5fbf",
            [(250, 40), (250, 110), (250, 190), (250, 270), (330, 350)],
            ["North Gate", "Library", "", "Theatre", "Harbour"],
        ),
        (
            "Green",
            "#2a8f4c",
            [(60, 300), (150, 300), (250, 270), (350, 190), (430, 110)],
            ["Airport", "Stadium", "", "", "Hospital"],
        ),
    ]
    canvas = Canvas(500, 400, ["#ffffff", "#f2efe6"][i % 2])
    canvas.poly(
        [(0, 230), (120, 210), (220, 240), (500, 290), (500, 330), (220, 275), (120, 245), (0, 265)], fill="#cfe6f5"
    )
    for _, colour, points, _ in lines:
        canvas.line(points, colour, 7)
    for _, _, points, names in lines:
        for (x, y), name in zip(points, names):
            canvas.circle(x, y, 7, fill="white", outline="#222", width=2)
            if name:
                canvas.text(
                    min(x + 10, 496 - canvas.text_width(name, 12, "bold")),
                    y - 17,
                    name,
                    12,
                    "#222",
                    "bold",
                    "lm",
                    "white",
                )
    for k, (name, colour, _, _) in enumerate(lines):
        canvas.rect(20, 336 + 18 * k, 50, 346 + 18 * k, fill=colour)
        canvas.text(58, 341 + 18 * k, f"{name} line", 12, anchor="lm")
    turns = [
        [
            (
                "How do I get from the Zoo to the Theatre?",
                "Take the red line from Zoo to Central (two stops), change to the blue "
                "line there and ride one stop to Theatre.",
            ),
            ("Which lines meet at Market?", "The red and the green line."),
        ],
        [
            ("Which line goes to the airport?", "The green line."),
            (
                "Name all the stations on the blue line from top to bottom.",
                "North Gate, Library, Central, Theatre, Harbour.",
            ),
            ("从动物园（Zoo）到中央站（Central）要坐几站？", "坐红线，两站。"),
        ],
    ][i % 2]
    return Picture(canvas.image(), [turns])


def street_map(rng, i) -> Picture:
    canvas = Canvas(512, 448, "#ece7dc")
    xs, ys = [0, 120, 240, 380, 512], [0, 110, 230, 330, 448]
    for c in range(4):
        for r in range(4):
            if (c, r) != (2, 1):
                for _ in range(6):
                    x, y = rng.uniform(xs[c] + 16, xs[c + 1] - 46), rng.uniform(ys[r] + 16, ys[r + 1] - 40)
                    canvas.rect(
                        x,
                        y,
                        x + rng.uniform(16, 34),
                        y + rng.uniform(14, 28),
                        fill=lerp("#d9cfbe", "#c9b9a4", rng.random()),
                    )
    canvas.rect(*(252, 122, 368, 218), fill="#b9dba4", radius=8)
    for _ in range(22):
        canvas.circle(
            rng.uniform(262, 358),
            rng.uniform(132, 208),
            rng.uniform(4, 8),
            fill=lerp("#7fb069", "#4f8a4b", rng.random()),
        )
    canvas.line([(0, 400), (130, 372), (260, 392), (400, 356), (512, 372)], "#9ecbe8", 34)
    for x in xs[1:-1]:
        canvas.line([(x, 0), (x, 448)], "white", 13)
    for y in ys[1:-1]:
        canvas.line([(0, y), (512, y)], "#ffe08a" if y == 230 else "white", 17 if y == 230 else 12)
    canvas.text(60, 230, "King's Road", 12, "#6a5a2a", "bold", "mm")
    canvas.text(310, 170, "Elm Park", 14, "#2d5a27", "bold", "mm", "white")
    canvas.text(64, 386, "River Lyn", 13, "#2b6c99", "oblique", "mm")
    spots = [
        ("School", "#8e44ad", 180, 60),
        ("Post", "#d68910", 450, 60),
        ("Hospital", "#c0392b", 60, 170),
        ("Station", "#1f618d", 440, 280),
    ]
    for name, colour, x, y in spots:
        canvas.poly([(x - 8, y - 14), (x + 8, y - 14), (x, y + 2)], fill=colour)
        canvas.circle(x, y - 18, 10, fill=colour)
        canvas.circle(x, y - 18, 4, fill="white")
        canvas.text(x, y + 12, name, 13, colour, "bold", "mm", "white")
    if i % 2:
        canvas.line(
            [(440, 290), (440, 330), (380, 330), (380, 230), (120, 230), (120, 170), (75, 170)], "#e63946", 4, dash=9
        )
    turns = [
        [
            ("What is in the green area?", "A park with trees. It is labelled Elm Park."),
            (
                "Which place is nearest to the top left corner: the school, the post office or the station?",
                "The school.",
            ),
            ("On which side of the map is the river?", "At the bottom; the River Lyn flows from left to right."),
        ],
        [
            (
                "The dashed red line is a walk. Where does it start and end, and what does it pass?",
                "It joins the station at the lower right and the hospital at the left. From the station it goes down one block, "
                "left, then up to King's Road, follows that road to the left past the lower edge of Elm Park, and turns up to the "
                "hospital.",
            )
        ],
    ][i % 2]
    return Picture(canvas.image(), [turns])


DRAWINGS = [(floor_plan, 3), (metro_map, 2), (street_map, 2)]
