# ruff: noqa: E501
"""Bars, lines and pies: the numbers asked about are the numbers drawn."""

from __future__ import annotations

import io
import json

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from canvas import Picture
from PIL import Image

MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
STYLES = ["default", "ggplot", "seaborn-v0_8-whitegrid", "fivethirtyeight", "bmh", "seaborn-v0_8-darkgrid"]
PALETTES = ["Set2", "tab10", "Dark2", "Paired", "Accent", "Set1"]


def figure_image(rng, width, height, draw, style=None, **kwargs) -> Image.Image:
    style = style or STYLES[rng.integers(len(STYLES))]
    with plt.style.context(style), plt.rc_context({"font.size": 10, "axes.titlesize": 12, "lines.linewidth": 2}):
        figure = plt.figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained", **kwargs)
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        plt.close(figure)
    return Image.open(buffer).convert("RGB")


def colours(rng, n):
    return plt.get_cmap(PALETTES[rng.integers(len(PALETTES))])(np.arange(n) % 8)


BARS = [
    ("Visitors per exhibition hall", "visitors", ["Fossils", "Oceans", "Space", "Insects", "Minerals"], 120, 900, 10),
    ("Books lent in a week", "books", ["Crime", "Travel", "History", "Poetry", "Children", "Cooking"], 10, 95, 1),
    ("Rainfall by station (mm)", "mm", ["Altmoor", "Birkau", "Corvel", "Dunrath"], 20, 180, 5),
    ("Umsatz je Filiale (Tsd. €)", "Tsd. €", ["Nord", "Süd", "Ost", "West", "Mitte"], 40, 240, 5),
]


def bar_chart(rng, i) -> Picture:
    title, unit, names, low, high, step = BARS[i % len(BARS)]
    values = rng.choice(np.arange(low, high, step), len(names), replace=False)
    horizontal = i % 2 == 1

    def draw(figure):
        axes = figure.add_subplot()
        bars = (axes.barh if horizontal else axes.bar)(names, values, color=colours(rng, len(names)))
        axes.bar_label(bars, fontsize=9, padding=2)
        axes.set_title(title)
        axes.margins(x=0.12) if horizontal else axes.margins(y=0.14)

    image = figure_image(rng, *[(560, 400), (480, 420), (448, 448), (640, 380)][i % 4], draw)
    top, bottom = names[values.argmax()], names[values.argmin()]
    order = [names[k] for k in np.argsort(-values)]
    if i % 4 == 3:
        turns = [
            (
                "Welche Filiale hat den höchsten Umsatz, und wie hoch ist er?",
                f"Die Filiale {top} mit {values.max()} Tsd. €.",
            ),
            (
                "Wie groß ist der Abstand zur schwächsten Filiale?",
                f"{top} liegt mit {values.max()} Tsd. € um {values.max() - values.min()} Tsd. € vor {bottom} "
                f"({values.min()} Tsd. €).",
            ),
        ]
    else:
        turns = [
            ("Which category is the highest?", top),
            (f"What is the value for {names[1]}?", f"{values[1]}"),
            (
                "Rank all of them from highest to lowest and give the total.",
                f"From highest to lowest: {', '.join(order)}. Added up, the bars come to {values.sum()} {unit}.",
            ),
        ]
    data = json.dumps({n: int(v) for n, v in zip(names, values)}, ensure_ascii=False)
    return Picture(image, [turns, [("Read the chart and return its data as a JSON object.", data)]])


def grouped_bars(rng, i) -> Picture:
    groups = [["2021", "2022", "2023", "2024"], ["Q1", "Q2", "Q3", "Q4"], ["Mon", "Tue", "Wed", "Thu", "Fri"]][i % 3]
    series = [["Solar", "Wind", "Hydro"], ["Online", "In store"], ["Bus", "Tram", "Bicycle"]][i % 3]
    title = ["Electricity produced (GWh)", "Orders by channel", "Trips to work"][i % 3]
    values = rng.integers(8, 60, (len(series), len(groups)))
    stacked = i % 2 == 1

    def draw(figure):
        axes = figure.add_subplot()
        at, floor = np.arange(len(groups)), np.zeros(len(groups))
        for k, (name, colour) in enumerate(zip(series, colours(rng, len(series)))):
            if stacked:
                axes.bar_label(axes.bar(at, values[k], 0.6, floor, color=colour, label=name), label_type="center")
                floor += values[k]
            else:
                axes.bar(at + (k - (len(series) - 1) / 2) * 0.26, values[k], 0.25, color=colour, label=name)
        axes.set_xticks(at, groups)
        axes.set_title(title)
        axes.legend(fontsize=9)

    image = figure_image(rng, *[(600, 400), (460, 460), (560, 360)][i % 3], draw)
    if stacked:
        total = values.sum(0)
        turns = [
            ("What is the total height of each stack?", "; ".join(f"{g}: {t}" for g, t in zip(groups, total))),
            ("Which group is the tallest?", groups[total.argmax()]),
        ]
    else:
        k = int(values.sum(1).argmax())
        best = groups[int(values[k].argmax())]
        turns = [
            ("What are the series in the legend?", ", ".join(series) + "."),
            (
                "Which series is strongest over the whole chart? Explain how you can tell.",
                f"{series[k]}. Its bars add up to more than those of any other series, and it reaches its highest "
                f"point at {best}. The others are "
                f"{' and '.join(s for s in series if s != series[k])}, which stay lower on the whole.",
            ),
        ]
    return Picture(image, [turns])


def line_chart(rng, i) -> Picture:
    names = [["Oslo", "Lisbon", "Cairo"], ["Model A", "Model B"], ["Wheat", "Rice", "Maize", "Barley"]][i % 3]
    title = ["Mean temperature (°C)", "Validation accuracy (%)", "Price index (2015 = 100)"][i % 3]
    x = [MONTHS, list(range(1, 21)), list(range(2015, 2025))][i % 3]
    t = np.linspace(0, 1, len(x))
    if i % 3 == 0:
        curves = [b + a * np.sin(np.pi * (t * 2 - 0.55)) for a, b in ((11, 6), (7, 17), (9, 22))]
    elif i % 3 == 1:
        curves = [h * (1 - np.exp(-r * t)) + rng.normal(0, 0.6, len(t)) for h, r in ((91, 6), (84, 10))]
    else:
        curves = [100 + np.cumsum(rng.normal(m, 4, len(t))) for m in (1, 4, -1, 2)]

    def draw(figure):
        axes = figure.add_subplot()
        for name, curve, marker in zip(names, curves, "os^D"):
            axes.plot(x, curve, marker=marker, markersize=4, label=name)
        axes.set_title(title)
        axes.set_xlabel(["Month", "Epoch", "Year"][i % 3])
        axes.legend(fontsize=9)

    image = figure_image(rng, *[(640, 400), (512, 384), (600, 440)][i % 3], draw)
    last = names[int(np.argmax([c[-1] for c in curves]))]
    caption = [
        "The chart compares the mean temperature of Oslo, Lisbon and Cairo over the twelve months of a year. All three "
        "curves have the same shape, a single summer maximum around July and a minimum in winter, but at different "
        "heights: Cairo is the warmest, Lisbon lies in between with the smallest swing, and Oslo is the coldest and "
        "falls below freezing in the winter months.",
        "Validation accuracy is plotted against training epochs for two models. Model B climbs faster in the first "
        "epochs and then levels off; Model A needs longer but ends higher. The curves cross, so the better choice "
        "depends on how long you are willing to train.",
        "Four lines show how the prices of wheat, rice, maize and barley moved between 2015 and 2024, as an index that "
        f"starts near 100. The lines drift apart over the years; at the right edge {last} is the highest.",
    ][i % 3]
    return Picture(
        image,
        [
            [("Describe this chart in a short paragraph.", caption)],
            [
                ("Which line is highest at the right end of the chart?", last),
                ("How many lines are there?", str(len(names))),
            ],
        ],
    )


PIES = [
    ("How the day is spent", ["Sleep", "Work", "Meals", "Travel", "Leisure"]),
    ("Household budget", ["Rent", "Food", "Transport", "Savings", "Other"]),
    ("Énergie consommée", ["Chauffage", "Eau chaude", "Cuisson", "Éclairage"]),
]


def pie_chart(rng, i) -> Picture:
    title, names = PIES[i % 3]
    while True:
        shares = np.round(rng.dirichlet(np.full(len(names), 4.0)) * 100).astype(int)
        if shares.sum() == 100 and shares.min() >= 6 and len(set(shares)) == len(names):
            break
    donut = i % 2 == 1

    def draw(figure):
        axes = figure.add_subplot()
        axes.pie(
            shares,
            labels=names,
            autopct="%d%%",
            colors=colours(rng, len(names)),
            pctdistance=0.78 if donut else 0.62,
            wedgeprops={"width": 0.45, "edgecolor": "white"} if donut else {"edgecolor": "white"},
            explode=None if donut else [0.06] + [0] * (len(names) - 1),
            startangle=90,
        )
        axes.set_title(title, fontweight="bold")

    image = figure_image(rng, *[(420, 420), (448, 400), (480, 400)][i % 3], draw, style="default")
    big, small = names[shares.argmax()], names[shares.argmin()]
    if i % 3 == 2:
        turns = [
            ("Quelle est la plus grande part ?", f"{big}, avec {shares.max()} % du total."),
            ("Et la plus petite ?", f"{small} ({shares.min()} %)."),
        ]
    else:
        turns = [
            ("What percentage is the largest slice?", f"{shares.max()}%"),
            (
                f"Do {names[0]} and {names[1]} together make up more than half?",
                f"{'Yes' if shares[0] + shares[1] > 50 else 'No'}: {shares[0]}% + {shares[1]}% = {shares[0] + shares[1]}%.",
            ),
        ]
    return Picture(image, [turns])


DRAWINGS = [(bar_chart, 4), (grouped_bars, 3), (line_chart, 3), (pie_chart, 3)]
