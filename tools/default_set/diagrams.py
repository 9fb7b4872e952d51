"""Diagrams: flows, trees, networks, sets, schedules, plans and maps."""

from __future__ import annotations

import math

import numpy as np
from canvas import Canvas, Picture, lerp

FLOWS = [
    (["Order received", "In stock?", "Pack parcel", "Ask supplier", "Ship", "Tell customer"],
     "What happens when the item is not in stock?", "The supplier is asked, and then the customer is told.",
     "Summarise the process in one sentence.",
     "After an order is received the stock is checked: an item that is there is packed and shipped, otherwise the "
     "supplier is asked and the customer is told."),
    (["Commit pushed", "Tests pass?", "Build image", "Notify author", "Deploy", "Wait for fix"],
     "When is the image built?", "Only if the tests pass.",
     "What follows a failing test?", "The author is notified, and the process then waits for a fix."),
    (["Lamp is dark", "Plugged in?", "Change bulb", "Plug it in", "Still dark? Repair", "Lamp works"],
     "The lamp is plugged in but dark. What should I try first?", "Change the bulb. If it is still dark, have it repaired.",
     "What shape is the decision?", "A diamond."),
]


def _box(canvas, x, y, text, fill, w=150, h=46, ink="#1b2530", radius=8, size=13):
    canvas.rect(x - w / 2 + 2, y - h / 2 + 3, x + w / 2 + 2, y + h / 2 + 3, fill=(0, 0, 0, 40), radius=radius)
    canvas.rect(x - w / 2, y - h / 2, x + w / 2, y + h / 2, fill=fill, outline=lerp(fill, "black", 0.4), width=1.3, radius=radius)
    canvas.text(x, y, text, size, ink, anchor="mm")


def flowchart(rng, i) -> Picture:
    names, *asked = FLOWS[i % 3]
    tint = ["#cfe8ff", "#d9f2d9", "#ffe9c7"][i % 3]
    canvas = Canvas(480, 470)
    ink = "#33414f"
    for line in ([(240, 70), (240, 112)], [(152, 168), (110, 168), (110, 262)], [(328, 168), (370, 168), (370, 262)],
                 [(110, 308), (110, 382)], [(370, 308), (370, 382)]):
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
        ("Director", ["Research", "Production", "Sales"], [["Physics", "Design"], ["Foundry", "Assembly"], ["Europe", "Asia"]]),
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
        [("Which departments report to Production?", "The foundry and the assembly."), ("How many boxes are in the lowest row?", "6")],
        [("List the mammals in this tree.", "Bat and seal."), ("Turn the tree into a nested list.",
          "- Vertebrates\n  - Fish\n    - Carp\n    - Pike\n  - Birds\n    - Owl\n    - Heron\n  - Mammals\n    - Bat\n    - Seal")],
    ][i % 2]
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
                ("What is the sum of the weights of A's edges?", str(sum(w for (a, _), w in weights.items() if a == 0))),
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


def gantt(rng, i) -> Picture:
    tasks = [["Survey", "Foundation", "Walls", "Roof", "Interior"], ["Read", "Sketch", "Write", "Review", "Print"]][i % 2]
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
                (f"In which week does {tasks[2]} begin?", f"In week {starts[2] + 1}."),
                ("Which task takes longest?", f"{' and '.join(long)}, with {lengths.max()} weeks."),
                ("How many weeks does the whole plan span?", str(weeks)),
            ]
        ],
    )


def floor_plan(rng, i) -> Picture:
    canvas = Canvas(520, 400, ["#f7f5ef", "#1d4e89", "#ffffff"][i % 3])
    wall = ["#3a3a3a", "#e8f1ff", "#222222"][i % 3]
    names = [["Living room", "Kitchen", "Bath", "Bedroom", "Hall"], ["Office", "Meeting", "WC", "Archive", "Reception"],
             ["Wohnzimmer", "Küche", "Bad", "Schlafzimmer", "Flur"]][i % 3]
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
    for x, y, start in ((110, 210, 0), (290, 235, 180), (200, 280, 0), (290, 110, 180)):
        horizontal = start == 0
        ends = [(x, y), (x + 34, y)] if horizontal else [(x, y), (x, y + 34)]
        canvas.line(ends, back, 6)
        canvas.arc(x, y, 34, 0 if horizontal else 90, 90 if horizontal else 180, wall, 1)
        canvas.line([(x, y), (x, y + 34) if horizontal else (x - 34, y)], wall, 1.5)
    turns = [
        [("Which is the largest room, and how large is it?", "The living room, with 26 m²."),
         ("Is there a way from the hall to the bedroom?", "Yes, a door leads from the hall down into the bedroom.")],
        [("Describe this floor plan.", "It is the plan of a small office drawn in white lines on blue. At the top left is the "
          "office proper with 26 m², at the top right a meeting room with 14 m². Below them lie the reception, the toilet "
          "and a server room, and at the bottom the archive, with a terrace beside it.")],
        [("Wie groß ist die Küche?", "14 m²."), ("Welche Räume sind kleiner als 10 m²?", "Das Bad (5,5 m²) und der Flur (9,1 m²).")],
    ][i % 3]
    return Picture(canvas.image(), [turns])


def metro_map(rng, i) -> Picture:
    lines = [
        ("Red", "#d62828", [(50, 90), (150, 90), (250, 190), (350, 190), (450, 190)], ["Zoo", "Museum", "Central", "Market", "Arena"]),
        ("Blue", "#1d5fbf", [(250, 40), (250, 110), (250, 190), (250, 270), (330, 350)], ["North Gate", "Library", "", "Theatre", "Harbour"]),
        ("Green", "#2a8f4c", [(60, 300), (150, 300), (250, 270), (350, 190), (430, 110)], ["Airport", "Stadium", "", "", "Hospital"]),
    ]
    canvas = Canvas(500, 400, ["#ffffff", "#f2efe6"][i % 2])
    canvas.poly([(0, 230), (120, 210), (220, 240), (500, 290), (500, 330), (220, 275), (120, 245), (0, 265)], fill="#cfe6f5")
    for _, colour, points, _ in lines:
        canvas.line(points, colour, 7)
    for _, _, points, names in lines:
        for (x, y), name in zip(points, names):
            canvas.circle(x, y, 7, fill="white", outline="#222", width=2)
            if name:
                canvas.text(x + 10, y - 16, name, 12, "#222", "bold", "lm")
    for k, (name, colour, _, _) in enumerate(lines):
        canvas.rect(20, 336 + 18 * k, 50, 346 + 18 * k, fill=colour)
        canvas.text(58, 341 + 18 * k, f"{name} line", 12, anchor="lm")
    turns = [
        [("How do I get from the Zoo to the Theatre?", "Take the red line from Zoo to Central (two stops), change to the blue "
          "line there and ride one stop to Theatre."), ("Which lines meet at Market?", "The red and the green line.")],
        [("Which line goes to the airport?", "The green line."), ("Name all the stations on the blue line from top to bottom.",
          "North Gate, Library, Central, Theatre, Harbour."), ("从动物园（Zoo）到中央站（Central）要坐几站？", "坐红线，两站。")],
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
                    canvas.rect(x, y, x + rng.uniform(16, 34), y + rng.uniform(14, 28), fill=lerp("#d9cfbe", "#c9b9a4", rng.random()))
    canvas.rect(*(252, 122, 368, 218), fill="#b9dba4", radius=8)
    for _ in range(22):
        canvas.circle(rng.uniform(262, 358), rng.uniform(132, 208), rng.uniform(4, 8), fill=lerp("#7fb069", "#4f8a4b", rng.random()))
    canvas.line([(0, 400), (130, 372), (260, 392), (400, 356), (512, 372)], "#9ecbe8", 34)
    for x in xs[1:-1]:
        canvas.line([(x, 0), (x, 448)], "white", 13)
    for y in ys[1:-1]:
        canvas.line([(0, y), (512, y)], "#ffe08a" if y == 230 else "white", 17 if y == 230 else 12)
    canvas.text(60, 230, "King's Road", 12, "#6a5a2a", "bold", "mm")
    canvas.text(310, 170, "Elm Park", 14, "#2d5a27", "bold", "mm")
    canvas.text(64, 386, "River Lyn", 13, "#2b6c99", "oblique", "mm")
    spots = [("School", "#8e44ad", 180, 60), ("Post", "#d68910", 450, 60), ("Hospital", "#c0392b", 60, 170), ("Station", "#1f618d", 440, 280)]
    for name, colour, x, y in spots:
        canvas.poly([(x - 8, y - 14), (x + 8, y - 14), (x, y + 2)], fill=colour)
        canvas.circle(x, y - 18, 10, fill=colour)
        canvas.circle(x, y - 18, 4, fill="white")
        canvas.text(x, y + 12, name, 13, colour, "bold", "mm")
    if i % 2:
        canvas.line([(440, 290), (440, 330), (380, 330), (380, 230), (120, 230), (120, 170), (75, 170)], "#e63946", 4, dash=9)
    turns = [
        [("What is in the green area?", "A park with trees. It is labelled Elm Park."),
         ("Which place is nearest to the top left corner: the school, the post office or the station?", "The school."),
         ("On which side of the map is the river?", "At the bottom; the River Lyn flows from left to right.")],
        [("The dashed red line is a walk. Where does it start and end, and what does it pass?",
          "It joins the station at the lower right and the hospital at the left. From the station it goes down one block, "
          "left, then up to King's Road, follows that road to the left past the lower edge of Elm Park, and turns up to the "
          "hospital.")],
    ][i % 2]
    return Picture(canvas.image(), [turns])


def sequence_diagram(rng, i) -> Picture:
    actors = [["Browser", "Server", "Database"], ["Guest", "Waiter", "Kitchen"]][i % 2]
    calls = [
        [(0, 1, "GET /orders/17"), (1, 2, "SELECT order"), (2, 1, "row"), (1, 0, "200 OK (JSON)"), (0, 0, "render page")],
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
        [("What does the server do before it answers?", "It asks the database for the order with a SELECT and gets back a row."),
         ("Write the messages as a numbered list.", "1. Browser → Server: GET /orders/17\n2. Server → Database: SELECT order\n"
          "3. Database → Server: row\n4. Server → Browser: 200 OK (JSON)\n5. Browser: render page")],
        [("What is the last message in this diagram?", "The guest pays the waiter."),
         ("Does the guest ever speak to the kitchen directly?", "No. Everything between them goes through the waiter.")],
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
        canvas.text(48, 163, f"{volts} V", 18, anchor="rm") if volts < 10 else canvas.text(52, 163, f"{volts} V", 16, anchor="rm")
        canvas.text(380, 180, f"{ohms} Ω", 18, anchor="lm")
        canvas.circle(220, 70, 22, fill="white", outline="#222", width=2)
        canvas.text(220, 70, "A", 18, face="bold", anchor="mm")
        turns = [("What current does the ammeter show?", f"By Ohm's law I = U / R = {volts} V / {ohms} Ω = {volts / ohms:g} A."),
                 ("What does the rectangle stand for?", "A resistor.")]
    else:
        names = ["Egg", "Caterpillar", "Pupa", "Butterfly"]
        for k, name in enumerate(names):
            a = math.pi / 2 * k - math.pi / 2
            canvas.arc(220, 180, 118, math.degrees(a) + 24, math.degrees(a) + 62, "#4c956c", 4)
            e = a + math.radians(64)
            x, y = 220 + 118 * math.cos(e), 180 + 118 * math.sin(e)
            t = (-math.sin(e), math.cos(e))
            canvas.poly([(x + 12 * t[0], y + 12 * t[1]), (x + 8 * math.cos(e), y + 8 * math.sin(e)), (x - 8 * math.cos(e), y - 8 * math.sin(e))], fill="#4c956c")
            _box(canvas, 220 + 130 * math.cos(a), 180 + 130 * math.sin(a), name, "#fefae0", w=112, h=38, size=14)
        canvas.text(220, 180, "Life cycle", 17, "#344e41", "bold", "mm")
        turns = [("What comes after the caterpillar?", "The pupa."),
                 ("チョウの一生を順番に説明してください。", "卵から幼虫（いも虫）がかえり、さなぎになり、最後に成虫のチョウになります。そしてまた卵を産みます。")]
    return Picture(canvas.image(), [turns])


DRAWINGS = [
    *((flowchart, 3), (tree, 2), (network, 2), (venn, 2), (gantt, 2), (floor_plan, 3), (metro_map, 2), (street_map, 2)),
    *((sequence_diagram, 2), (circuit_and_cycle, 2)),
]
