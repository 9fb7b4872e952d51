# ruff: noqa: E501
"""Screens of a phone, and a dialog."""

from __future__ import annotations

import numpy as np
from canvas import Canvas, Picture, lerp

SANS = "#1c1c1e"


def _phone(height=640, width=330, background="#f2f2f7", ink="black", time="9:41") -> Canvas:
    canvas = Canvas(width, height, background)
    canvas.text(28, 20, time, 13, ink, "bold", "lm")
    for k in range(4):
        canvas.rect(width - 92 + 6 * k, 25 - 3 * (k + 1), width - 88 + 6 * k, 25, fill=ink, radius=1)
    canvas.rect(width - 52, 13, width - 26, 26, outline=ink, width=1.2, radius=3)
    canvas.rect(width - 50, 15, width - 34, 24, fill=ink, radius=2)
    return canvas


def settings_screen(rng, i) -> Picture:
    dark = i % 2 == 1
    back, card, ink, soft = (
        ("#000000", "#1c1c1e", "white", "#8e8e93") if dark else ("#f2f2f7", "white", SANS, "#8e8e93")
    )
    names = [
        ["Wi-Fi", "Bluetooth", "Flight mode", "Mobile data", "Notifications", "Location", "Night light"],
        ["WLAN", "Bluetooth", "Flugmodus", "Mobile Daten", "Mitteilungen", "Standort", "Nachtlicht"],
    ][i % 2]
    on = rng.random(7) < 0.5
    on[0], on[2] = True, False
    canvas = _phone(background=back, ink=ink)
    canvas.text(24, 62, ["Settings", "Einstellungen"][i % 2], 30, ink, "bold", "lm")
    canvas.rect(16, 96, 314, 96 + 62 * 7, fill=card, radius=14)
    for k, (name, state) in enumerate(zip(names, on)):
        y = 127 + 62 * k
        canvas.rect(
            30,
            y - 16,
            62,
            y + 16,
            fill=["#007aff", "#5856d6", "#ff9500", "#34c759", "#ff3b30", "#30b0c7", "#af52de"][k],
            radius=8,
        )
        canvas.circle(46, y, 7, outline="white", width=2)
        canvas.text(76, y, name, 16, ink, anchor="lm")
        canvas.rect(
            250, y - 15, 300, y + 15, fill="#34c759" if state else ("#39393d" if dark else "#e0e0e4"), radius=15
        )
        canvas.circle(285 if state else 265, y, 13, fill="white")
        if k < 6:
            canvas.line([(76, y + 31), (314, y + 31)], soft, 0.5)
    active = [n for n, s in zip(names, on) if s]
    if dark:
        turns = [
            ("Welche Schalter sind eingeschaltet?", ", ".join(active) + "."),
            ("Ist der Flugmodus an?", "Nein, er ist ausgeschaltet."),
        ]
    else:
        turns = [
            ("Is flight mode switched on?", "No."),
            ("How many of the switches are on, and which ones?", f"{len(active)}: {', '.join(active)}."),
        ]
    return Picture(canvas.image(), [turns])


CHATS = [
    (
        "Priya",
        [
            (0, "Are we still on for Saturday?"),
            (1, "Yes! Train at 10:15?"),
            (0, "Perfect. I'll bring sandwiches"),
            (1, "And I'll bring the map"),
            (0, "Meet at platform 4"),
        ],
        [
            (
                "What have the two agreed on?",
                "They will take the 10:15 train on Saturday and meet at platform 4. Priya brings sandwiches, the other person brings the map.",
            ),
            ("Who brings the map?", "The owner of the phone, whose messages are on the right."),
        ],
    ),
    (
        "Tante Ayşe",
        [(0, "Yarın geliyor musun?"), (1, "Evet, saat üçte"), (0, "Baklava yapıyorum"), (1, "Harika, çay benden!")],
        [
            ("Yarın saat kaçta buluşuyorlar?", "Saat üçte."),
            (
                "What is the conversation about? Answer in English.",
                "A visit tomorrow at three. The aunt is making baklava, and the other person offers to bring the tea.",
            ),
        ],
    ),
    (
        "Support",
        [
            (1, "My parcel 8841 is late"),
            (0, "Sorry to hear that! Let me look."),
            (0, "It left our depot this morning."),
            (1, "So it comes today?"),
            (0, "Yes, between 4 and 6 pm."),
        ],
        [("When will the parcel arrive?", "Today between 4 and 6 pm."), ("What is the parcel's number?", "8841")],
    ),
]


def chat_screen(rng, i) -> Picture:
    who, messages, turns = CHATS[i % 3]
    canvas = _phone(560, background=["#e9e3da", "#ffffff", "#0e1621"][i % 3], ink=["black", "black", "white"][i % 3])
    bar = ["#0b7a6b", "#f6f6f6", "#17212b"][i % 3]
    canvas.rect(0, 40, 330, 96, fill=bar)
    ink = ["white", "black", "white"][i % 3]
    canvas.line([(24, 60), (16, 68), (24, 76)], ink, 2.5)
    canvas.circle(58, 68, 19, fill=["#f2b880", "#c08497", "#5288c1"][i % 3])
    canvas.text(58, 68, who[0], 18, "white", "bold", "mm")
    canvas.text(90, 60, who, 16, ink, "bold", "lm")
    canvas.text(90, 80, "online", 11, ink, anchor="lm")
    y = 116
    for k, (mine, text) in enumerate(messages):
        width = canvas.text_width(text, 14) + 26
        x = 316 - width if mine else 14
        fill = [["#ffffff", "#d8f5c4"], ["#e9e9eb", "#0a84ff"], ["#182533", "#2b5278"]][i % 3][mine]
        colour = ["#111", "white" if mine else "#111", "white"][i % 3]
        canvas.rect(x, y, x + width, y + 42, fill=fill, radius=16)
        canvas.text(x + 13, y + 16, text, 14, colour, anchor="lm")
        canvas.text(x + width - 12, y + 33, f"18:0{k + 2}", 9, lerp(fill, colour, 0.55), anchor="rm")
        y += 58
    canvas.rect(14, 508, 266, 546, fill=["white", "#f0f0f3", "#17212b"][i % 3], radius=19)
    canvas.text(30, 527, "Message", 14, "#8a8a8e", anchor="lm")
    canvas.circle(296, 527, 19, fill=["#0b7a6b", "#0a84ff", "#5288c1"][i % 3])
    canvas.poly([(289, 519), (306, 527), (289, 535), (293, 527)], fill="white")
    return Picture(canvas.image(), [turns])


def weather_screen(rng, i) -> Picture:
    city, sky = [
        ("Reykjavík", ("#536976", "#292e49")),
        ("Nairobi", ("#2980b9", "#6dd5fa")),
        ("Montréal", ("#3d5a99", "#8aa6d6")),
    ][i % 3]
    now = [4, 24, -6][i % 3]
    canvas = _phone(600, ink="white")
    canvas.gradient(*sky)
    canvas.text(165, 60, city, 30, "white", anchor="mm")
    canvas.text(165, 126, f"{now}°", 80, "white", "sans", "mm")
    canvas.text(165, 186, ["Rain", "Sunny", "Neige"][i % 3], 18, "white", anchor="mm")
    days = [
        ["Mon", "Tue", "Wed", "Thu", "Fri"],
        ["Mon", "Tue", "Wed", "Thu", "Fri"],
        ["lun.", "mar.", "mer.", "jeu.", "ven."],
    ][i % 3]
    low = now - rng.integers(2, 7, 5)
    high = low + rng.integers(4, 9, 5)
    high[int(rng.integers(5))] = high.max() + 2
    kinds = rng.choice([[0, 1, 2], [0, 1], [0, 2]][i % 3], 5)
    canvas.rect(18, 226, 312, 576, fill=(255, 255, 255, 46), radius=18)
    for k, day in enumerate(days):
        y = 262 + 68 * k
        canvas.text(36, y, day, 17, "white", "bold", "lm")
        if kinds[k] == 0:
            for a in np.arange(0, 2 * np.pi, np.pi / 4):
                canvas.line(
                    [(132 + 13 * np.cos(a), y + 13 * np.sin(a)), (132 + 18 * np.cos(a), y + 18 * np.sin(a))],
                    "#ffd93b",
                    2,
                )
            canvas.circle(132, y, 10, fill="#ffd93b")
        else:
            for dx, r in ((-9, 8), (2, 11), (12, 7)):
                canvas.circle(132 + dx, y - 2 + (11 - r) / 2, r, fill="white")
            for d in (-8, 1, 10):
                if kinds[k] == 1:
                    canvas.line([(132 + d, y + 12), (129 + d, y + 20)], "#9be1ff", 2)
                else:
                    canvas.circle(132 + d, y + 16, 2.2, fill="white")
        canvas.text(208, y, f"{low[k]}°", 16, "#e3edf5", anchor="rm")
        canvas.rect(218, y - 3, 258, y + 3, fill=(255, 255, 255, 90), radius=3)
        canvas.rect(226, y - 3, 252, y + 3, fill="#ffcf56", radius=3)
        canvas.text(300, y, f"{high[k]}°", 16, "white", "bold", "rm")
    warm = days[int(high.argmax())]
    if i % 3 == 2:
        turns = [
            ("Quelle température fait-il maintenant à Montréal ?", f"{now} °C, et il neige."),
            ("Quel jour sera le plus chaud ?", f"{warm} avec {high.max()} °C."),
        ]
    else:
        words = ["sun", "rain", "snow"]
        turns = [
            (f"What is the weather in {city} right now?", f"{now} degrees and {['rain', 'sunshine'][i % 3]}."),
            ("Which day will be the warmest?", f"{warm}, with up to {high.max()}°."),
            ("List the forecast symbols day by day.", ", ".join(f"{d}: {words[k]}" for d, k in zip(days, kinds)) + "."),
        ]
    return Picture(canvas.image(), [turns])


def dialog_and_player(rng, i) -> Picture:
    if i % 2 == 0:
        canvas = Canvas(560, 380)
        canvas.gradient("#5b86e5", "#36d1dc")
        canvas.rect(76, 86, 492, 306, fill=(0, 0, 0, 60), radius=12)
        canvas.rect(70, 78, 490, 300, fill="#fafafa", radius=12)
        canvas.rect(70, 78, 490, 116, fill="#e8e8ea", radius=12)
        canvas.text(280, 97, "Unsaved changes", 14, "#333", "bold", "mm")
        canvas.poly([(122, 146), (156, 206), (88, 206)], fill="#ffcc00")
        canvas.text(122, 184, "!", 34, "#333", "bold", "mm")
        canvas.text(180, 150, "Save changes to “budget.xlsx”?", 15, "#222", "bold")
        canvas.paragraph(180, 180, "If you close now, the changes of the last 14 minutes are lost.", 280, 13, "#444")
        for x, name, primary in ((96, "Don't save", False), (236, "Cancel", False), (366, "Save", True)):
            canvas.rect(x, 244, x + 104, 278, fill="#0a84ff" if primary else "#e3e3e6", radius=7)
            canvas.text(x + 52, 261, name, 13, "white" if primary else "#222", anchor="mm")
        return Picture(
            canvas.image(),
            [
                [
                    ("I want to keep my work. Which button do I press?", "“Save”, the blue button on the right."),
                    (
                        "What happens if I choose “Don't save”?",
                        "The file budget.xlsx closes and the changes of the last 14 minutes are lost.",
                    ),
                ]
            ],
        )
    canvas = _phone(620, ink="white")
    canvas.gradient("#42275a", "#734b6d")
    canvas.gradient("#fbc687", "#d1478c", (45, 80, 285, 320))
    for k in range(6):
        canvas.circle(165, 200, 100 - 16 * k, fill=lerp("#3a1c71", "#ffaf7b", k / 5))
    canvas.text(165, 362, "Slow Comet", 24, "white", "bold", "mm")
    canvas.text(165, 394, "The Night Gardeners", 15, "#dcc9dd", anchor="mm")
    canvas.rect(36, 436, 294, 440, fill=(255, 255, 255, 90), radius=2)
    canvas.rect(36, 436, 122, 440, fill="white", radius=2)
    canvas.circle(122, 438, 7, fill="white")
    canvas.text(36, 458, "1:16", 12, "#dcc9dd", anchor="lm")
    canvas.text(294, 458, "3:48", 12, "#dcc9dd", anchor="rm")
    canvas.circle(165, 528, 36, fill="white")
    for x in (153, 169):
        canvas.rect(x, 512, x + 8, 544, fill="#42275a", radius=2)
    for x, s in ((82, -1), (248, 1)):
        for d in (0, 14):
            canvas.poly([(x + s * (d - 12), 514), (x + s * (d + 2), 528), (x + s * (d - 12), 542)], fill="white")
    return Picture(
        canvas.image(),
        [
            [
                ("Which song is playing, and by whom?", "“Slow Comet” by The Night Gardeners."),
                ("How much of the song is left?", "It is 3:48 long and 1:16 have been played, so 2:32 are left."),
            ]
        ],
    )


DRAWINGS = [(settings_screen, 2), (chat_screen, 3), (weather_screen, 3), (dialog_and_player, 2)]
