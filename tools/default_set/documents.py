# ruff: noqa: E501
"""Paper: receipts, invoices, letters, forms."""

from __future__ import annotations

import json

import numpy as np
from canvas import Canvas, Picture, handwrite, paper

GOODS = [
    *(
        ("Oat milk 1L", 2.19),
        ("Rye bread", 3.45),
        ("Apples 1kg", 2.80),
        ("Coffee beans", 8.99),
        ("Dark chocolate", 1.95),
    ),
    *(("Eggs x10", 3.60), ("Tomatoes", 2.35), ("Olive oil", 7.49), ("Soap", 1.29), ("Batteries AA", 5.99)),
    *(("Notebook", 4.20), ("Basil pot", 1.99)),
]
SHOPS = [("GREENLEAF MARKET", "14 Harbour Street"), ("CORNER & CO.", "3 Mill Lane"), ("NORDKAUF", "Lindenweg 7")]


def receipt(rng, i) -> Picture:
    shop, street = SHOPS[i % 3]
    items = [GOODS[k] for k in rng.choice(len(GOODS), 4 + i, replace=False)]
    counts = rng.integers(1, 4, len(items))
    total = sum(p * int(n) for (_, p), n in zip(items, counts))
    paid = [20, 50, 50, 100][i % 4] if total > 20 else 20
    paid = paid if paid >= total else 100
    date = f"{rng.integers(1, 28):02d}.{rng.integers(1, 13):02d}.2024"
    canvas = Canvas(320, 300 + 22 * len(items), "#fcfbf6")
    canvas.text(160, 26, shop, 20, face="monobold", anchor="mm")
    canvas.text(160, 48, street, 12, face="mono", anchor="mm")
    canvas.text(160, 66, f"{date}  {rng.integers(8, 20)}:{rng.integers(10, 60)}", 12, face="mono", anchor="mm")
    canvas.line([(20, 84), (300, 84)], dash=4)
    y = 96
    for (name, price), n in zip(items, counts):
        canvas.text(20, y, f"{n} {name}", 13, face="mono")
        canvas.text(300, y, f"{price * int(n):.2f}", 13, face="mono", anchor="ra")
        y += 22
    canvas.line([(20, y + 4), (300, y + 4)], dash=4)
    canvas.text(20, y + 14, "TOTAL", 18, face="monobold")
    canvas.text(300, y + 14, f"{total:.2f}", 18, face="monobold", anchor="ra")
    canvas.text(20, y + 42, "CASH", 13, face="mono")
    canvas.text(300, y + 42, f"{paid:.2f}", 13, face="mono", anchor="ra")
    canvas.text(20, y + 62, "CHANGE", 13, face="mono")
    canvas.text(300, y + 62, f"{paid - total:.2f}", 13, face="mono", anchor="ra")
    x = 60.0
    while x < 260:
        width = rng.choice([1.0, 1.5, 2.0, 3.0])
        canvas.rect(x, y + 98, x + width, y + 140, fill="black")
        x += width + rng.choice([1.5, 2.5, 3.5])
    canvas.text(160, y + 162, "THANK YOU, COME AGAIN", 12, face="mono", anchor="mm")
    record = {
        "store": shop,
        "date": date,
        "items": [{"name": g[0], "quantity": int(n), "amount": round(g[1] * int(n), 2)} for g, n in zip(items, counts)],
        "total": round(total, 2),
    }
    dear = max(zip(items, counts), key=lambda row: row[0][1] * row[1])
    return Picture(
        paper(canvas.image(), rng, float(rng.uniform(-4, 4)), ["#5d4a3a", "#39444d", "#7a7f6d", "#2f2a2a"][i % 4]),
        [
            [
                ("What is the total on this receipt?", f"{total:.2f}"),
                ("Which line costs the most?", f"{dear[0][0]}, at {dear[0][1] * int(dear[1]):.2f}."),
            ],
            [("Extract the receipt as JSON with store, date, items and total.", json.dumps(record))],
        ],
    )


def invoice(rng, i) -> Picture:
    accent = ["#22577a", "#8d3b72"][i % 2]
    number = f"INV-{rng.integers(1000, 9999)}"
    rows = [
        [("Design of logo", 6, 80), ("Printing of flyers", 500, 0.12), ("Web hosting, year", 1, 140)],
        [("Oak boards 2 m", 24, 11.5), ("Screws, box", 6, 7.25), ("Delivery", 1, 45), ("Varnish 5 L", 2, 38)],
    ][i % 2]
    net = sum(q * p for _, q, p in rows)
    canvas = Canvas(480, 600)
    canvas.rect(0, 0, 480, 70, fill=accent)
    canvas.text(28, 35, ["Studio Kestrel", "Harrow Timber Ltd."][i % 2], 24, "white", "bold", "lm")
    canvas.text(452, 35, "INVOICE", 18, "white", "sans", "rm")
    canvas.text(28, 92, "Billed to", 11, "#777")
    canvas.paragraph(
        28, 108, ["Marta Lindqvist\n8 Quay Road\nPort Ellan", "Rowan School\n21 Hill View\nAshby"][i % 2], 200
    )
    due = f"2025-0{rng.integers(1, 9)}-{rng.integers(10, 28)}"
    for k, (name, value) in enumerate((("Number", number), ("Due date", due), ("Terms", "30 days net"))):
        canvas.text(300, 96 + 22 * k, name, 11, "#777")
        canvas.text(452, 96 + 22 * k, value, 12, anchor="ra", face="bold")
    canvas.rect(28, 196, 452, 222, fill="#eef1f4")
    for x, name, anchor in ((36, "Description", "lm"), (290, "Qty", "rm"), (365, "Price", "rm"), (444, "Amount", "rm")):
        canvas.text(x, 209, name, 12, accent, "bold", anchor)
    y = 240
    for name, quantity, price in rows:
        for x, value, anchor in (
            (36, name, "lm"),
            (290, f"{quantity}", "rm"),
            (365, f"{price:.2f}", "rm"),
            (444, f"{quantity * price:,.2f}", "rm"),
        ):
            canvas.text(x, y, value, 12, anchor=anchor)
        canvas.line([(28, y + 14), (452, y + 14)], "#dddddd", 0.7)
        y += 30
    for name, value, face in (("Subtotal", net, "sans"), ("VAT 20 %", net * 0.2, "sans"), ("Total", net * 1.2, "bold")):
        canvas.text(262, y + 14, name, 13, face=face, anchor="lm")
        canvas.text(444, y + 14, f"{value:,.2f} €", 13, face=face, anchor="rm")
        y += 26
    canvas.text(28, 560, "Please pay to IBAN XX00 1234 5678 9012 quoting the invoice number.", 10, "#666")
    return Picture(
        canvas.image(),
        [
            [
                ("What is the invoice number and when is it due?", f"Invoice {number} is due on {due}."),
                (
                    "How is the total computed?",
                    f"The {len(rows)} lines add up to {net:,.2f} €. With 20 % VAT ({net * 0.2:,.2f} €) the total is "
                    f"{net * 1.2:,.2f} €.",
                ),
            ]
        ],
    )


LETTERS = [
    (
        "Dear Mr Okafor,\nthank you for your letter of 3 May about the noise in the courtyard. We have asked the builders "
        "not to start before eight in the morning and to finish by five. The work on the roof should be done by the end "
        "of June. Should you notice anything out of order, please call the office.\nYours sincerely,\nHelena Brandt",
        "Why is Helena Brandt writing to Mr Okafor?",
        "She replies to his complaint about noise in the courtyard. She tells him that the builders will now work only "
        "from eight to five and that the roof should be finished by the end of June, and asks him to call the office if "
        "anything else goes wrong.",
    ),
    (
        "Chère Madame Morel,\nnous avons le plaisir de vous inviter à l'inauguration de la nouvelle bibliothèque, le "
        "samedi 14 septembre à 18 heures. Une visite guidée sera suivie d'un verre de l'amitié dans le jardin. Merci de "
        "confirmer votre présence avant le 1er septembre.\nBien cordialement,\nLe conseil municipal",
        "À quoi Madame Morel est-elle invitée, et que doit-elle faire ?",
        "Elle est invitée à l'inauguration de la nouvelle bibliothèque, le samedi 14 septembre à 18 heures. Elle doit "
        "confirmer sa présence avant le 1er septembre.",
    ),
    (
        "Уважаемые жители!\nВ четверг, 12 октября, с 9 до 15 часов в нашем доме не будет горячей воды в связи с "
        "ремонтом труб. Просим вас закрыть краны. О включении воды мы сообщим дополнительно.\nУправляющая компания",
        "О чём это объявление?",
        "В четверг, 12 октября, с 9 до 15 часов в доме отключат горячую воду из-за ремонта труб. Жителей просят "
        "закрыть краны.",
    ),
]


def letter(rng, i) -> Picture:
    body, question, answer = LETTERS[i % 3]
    canvas = Canvas(440, 560, "#fffefa")
    face = ["serif", "times", "sans"][i % 3]
    canvas.text(40, 40, ["Brandt Property", "Ville de Saint-Aubin", "УК «Рассвет»"][i % 3], 18, "#334", "serifbold")
    canvas.line([(40, 70), (400, 70)], "#8899aa")
    y = 96.0
    for block in body.split("\n"):
        y = canvas.paragraph(40, y, block, 360, [16, 19, 17][i % 3], "#222", face) + 10
    points = [(44 + 5 * k, y + 24 + 13 * np.sin(k * 0.9) * rng.uniform(0.3, 1)) for k in range(22)]
    canvas.line(points, "#23336b", 1.4)
    return Picture(paper(canvas.image(), rng, float(rng.uniform(-2, 2)), "#81786b"), [[(question, answer)]])


def form(rng, i) -> Picture:
    people = [
        ("Ines Duarte", "1988-04-17", "Lisboa"),
        ("Tomasz Wolski", "1975-11-02", "Gdańsk"),
        ("Aiko Mori", "1999-07-30", "Kobe"),
    ]
    name, born, city = people[i % 3]
    ticked = int(rng.integers(0, 3))
    choices = [
        ["Annual ticket", "Monthly ticket", "Day ticket"],
        ["Swimming", "Climbing", "Rowing"],
        ["Fish", "Meat", "Vegetarian"],
    ][i % 3]
    canvas = Canvas(460, 500, "#fbfbf8")
    canvas.text(
        30,
        30,
        ["City Transport: ticket order", "Sports club registration", "Conference dinner"][i % 3],
        19,
        "#20304a",
        "bold",
    )
    canvas.text(30, 60, "Please fill in with a pen. Fields with * are required.", 11, "#777")
    y = 96
    for label, value in (("Name *", name), ("Date of birth *", born), ("City", city), ("Phone", "")):
        canvas.text(30, y, label, 12, "#444")
        canvas.rect(30, y + 17, 430, y + 47, fill="#ffffff", outline="#9aa4ae")
        if value:
            handwrite(canvas, rng, 40, y + 40, value, 21)
        y += 64
    canvas.text(30, y, "Choose one *", 12, "#444")
    for k, choice in enumerate(choices):
        x = 30 + 135 * k
        canvas.rect(x, y + 22, x + 16, y + 38, outline="#555", width=1.2)
        canvas.text(x + 24, y + 30, choice, 12, anchor="lm")
        if k == ticked:
            canvas.line([(x + 1, y + 24), (x + 15, y + 37)], "#1d2f6f", 2)
            canvas.line([(x + 15, y + 22), (x, y + 38)], "#1d2f6f", 2)
    canvas.text(30, y + 62, "Signature", 12, "#444")
    handwrite(canvas, rng, 110, y + 76, name, 26)
    canvas.line([(105, y + 82), (330, y + 82)], "#888")
    fields = {"name": name, "date_of_birth": born, "city": city, "phone": None, "choice": choices[ticked]}
    return Picture(
        canvas.image(),
        [
            [
                ("Which box is ticked?", choices[ticked]),
                (
                    "Is any field left empty?",
                    "Yes, the phone number has not been filled in. It is not a required field.",
                ),
            ],
            [
                (
                    "Return the filled-in fields as JSON. Use null for an empty one.",
                    json.dumps(fields, ensure_ascii=False),
                )
            ],
        ],
    )


DRAWINGS = [(receipt, 4), (invoice, 2), (letter, 3), (form, 3)]
