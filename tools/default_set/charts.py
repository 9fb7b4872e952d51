"""Charts: the numbers asked about are the numbers drawn."""

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


def _figure(rng, width, height, draw, style=None, **kwargs) -> Image.Image:
    style = style or STYLES[rng.integers(len(STYLES))]
    with plt.style.context(style), plt.rc_context({"font.size": 10, "axes.titlesize": 12, "lines.linewidth": 2}):
        figure = plt.figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained", **kwargs)
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        plt.close(figure)
    return Image.open(buffer).convert("RGB")


def _colours(rng, n):
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
        bars = (axes.barh if horizontal else axes.bar)(names, values, color=_colours(rng, len(names)))
        axes.bar_label(bars, fontsize=9, padding=2)
        axes.set_title(title)
        axes.margins(x=0.12) if horizontal else axes.margins(y=0.14)

    image = _figure(rng, *[(560, 400), (480, 420), (448, 448), (640, 380)][i % 4], draw)
    top, bottom = names[values.argmax()], names[values.argmin()]
    order = [names[k] for k in np.argsort(-values)]
    if i % 4 == 3:
        turns = [
            ("Welche Filiale hat den höchsten Umsatz, und wie hoch ist er?", f"Die Filiale {top} mit {values.max()} Tsd. €."),
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
        for k, (name, colour) in enumerate(zip(series, _colours(rng, len(series)))):
            if stacked:
                axes.bar_label(axes.bar(at, values[k], 0.6, floor, color=colour, label=name), label_type="center")
                floor += values[k]
            else:
                axes.bar(at + (k - (len(series) - 1) / 2) * 0.26, values[k], 0.25, color=colour, label=name)
        axes.set_xticks(at, groups)
        axes.set_title(title)
        axes.legend(fontsize=9)

    image = _figure(rng, *[(600, 400), (460, 460), (560, 360)][i % 3], draw)
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

    image = _figure(rng, *[(640, 400), (512, 384), (600, 440)][i % 3], draw)
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
            [("Which line is highest at the right end of the chart?", last), ("How many lines are there?", str(len(names)))],
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
            colors=_colours(rng, len(names)),
            pctdistance=0.78 if donut else 0.62,
            wedgeprops={"width": 0.45, "edgecolor": "white"} if donut else {"edgecolor": "white"},
            explode=None if donut else [0.06] + [0] * (len(names) - 1),
            startangle=90,
        )
        axes.set_title(title, fontweight="bold")

    image = _figure(rng, *[(420, 420), (448, 400), (480, 400)][i % 3], draw, style="default")
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


def scatter_plot(rng, i) -> Picture:
    slope = [0.8, -0.7, 0.0][i % 3]
    x = rng.uniform(1, 10, 60)
    y = 5 + slope * (x - 5.5) + rng.normal(0, 0.8, 60)
    labels = [("Hours practised", "Score"), ("Car age (years)", "Price (k€)"), ("Shoe size", "Quiz result")][i % 3]

    def draw(figure):
        axes = figure.add_subplot()
        axes.scatter(x, y, s=rng.uniform(15, 80, 60), c=y, cmap=["viridis", "plasma", "cool"][i % 3], alpha=0.8)
        if slope:
            line = np.poly1d(np.polyfit(x, y, 1))
            axes.plot([1, 10], line([1, 10]), "--", color="crimson", linewidth=1.5)
        axes.set(xlabel=labels[0], ylabel=labels[1], title=f"{labels[1]} against {labels[0].lower()}")

    image = _figure(rng, *[(480, 400), (400, 400), (448, 336)][i % 3], draw)
    answer = [
        "Positive: the more hours are practised, the higher the score tends to be. The dashed trend line rises from "
        "lower left to upper right, though single points scatter around it.",
        "Negative. Older cars are cheaper: the cloud of points and the dashed line fall from left to right.",
        "There is none to speak of. The points form a shapeless cloud, so the shoe size says nothing about the result.",
    ][i % 3]
    return Picture(image, [[("What kind of correlation does the plot show?", answer), ("What is on the x-axis?", labels[0])]])


def histogram(rng, i) -> Picture:
    data = np.concatenate([rng.normal(42, 6, 400), rng.normal(68, 5, 250)]) if i else rng.gamma(2.2, 6, 600)

    def draw(figure):
        axes = figure.add_subplot()
        axes.hist(data, bins=28, color=["#5b8db8", "#c9784f"][i % 2], edgecolor="white")
        axes.set(xlabel="Minutes", ylabel="Count", title=["Waiting time", "Duration of visits"][i % 2])

    answer = [
        "The distribution is skewed to the right: most waiting times are short, and a long tail of rare, much longer "
        "waits reaches far to the right.",
        "It has two peaks, one a little above 40 minutes and a lower one near 70 minutes, with a valley between them. "
        "There are probably two kinds of visitors.",
    ][i % 2]
    image = _figure(rng, *[(500, 360), (448, 400)][i % 2], draw)
    return Picture(image, [[("Describe the shape of this distribution.", answer)]])


def heatmap(rng, i) -> Picture:
    rows = [["Mon", "Tue", "Wed", "Thu", "Fri"], ["cat", "dog", "fox", "owl"]][i % 2]
    columns = [["8h", "10h", "12h", "14h", "16h", "18h"], rows][i % 2]
    values = rng.integers(1, 60, (len(rows), len(columns)))
    if i % 2:
        np.fill_diagonal(values, rng.integers(70, 99, len(rows)))

    def draw(figure):
        axes = figure.add_subplot()
        axes.grid(False)
        picture = axes.imshow(values, cmap=["YlOrRd", "Blues"][i % 2], aspect="auto")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        for r in range(len(rows)):
            for c in range(len(columns)):
                dark = values[r, c] > values.max() * 0.6
                axes.text(c, r, values[r, c], ha="center", va="center", color="white" if dark else "black")
        axes.set_title(["Calls per hour", "Confusion matrix"][i % 2])
        figure.colorbar(picture)

    image = _figure(rng, *[(540, 380), (460, 400)][i % 2], draw, style="default")
    r, c = np.unravel_index(values.argmax(), values.shape)
    if i % 2 == 0:
        turns = [
            ("When are there most calls?", f"On {rows[r]} at {columns[c]}, with {values.max()} calls."),
            (f"How many calls on {rows[2]} at {columns[0]}?", str(values[2, 0])),
        ]
    else:
        off = values - np.diag(np.diag(values))
        a, b = np.unravel_index(off.argmax(), off.shape)
        turns = [
            (
                "Which two classes are mixed up most often (rows are the truth)?",
                f"The cell off the diagonal with the highest count is row {rows[a]}, column {columns[b]}: "
                f"{off.max()} times a {rows[a]} was taken for a {columns[b]}.",
            )
        ]
    return Picture(image, [turns])


def radar_and_box(rng, i) -> Picture:
    if i % 2 == 0:
        names = ["Speed", "Range", "Comfort", "Price", "Safety", "Looks"]
        scores = rng.integers(2, 10, (2, 6))

        def draw(figure):
            axes = figure.add_subplot(projection="polar")
            angles = np.linspace(0, 2 * np.pi, 7)
            for row, colour, name in zip(scores, ("#2a9d8f", "#e76f51"), ("Falcon", "Heron")):
                axes.plot(angles, [*row, row[0]], color=colour, label=name)
                axes.fill(angles, [*row, row[0]], color=colour, alpha=0.2)
            axes.set_xticks(angles[:-1], names)
            axes.set_ylim(0, 10)
            axes.legend(loc="lower left", bbox_to_anchor=(-0.2, -0.12))

        better = [n for n, a, b in zip(names, *scores) if a > b]
        answer = f"Falcon scores higher in {', '.join(better)}." if better else "In none of the six."
        return Picture(
            _figure(rng, 440, 440, draw, style="default"),
            [[("In which respects does Falcon beat Heron?", answer), ("What type of chart is this?", "A radar chart.")]],
        )
    centres = rng.permutation([20, 32, 45, 58])
    groups = ["A", "B", "C", "D"]

    def draw(figure):
        axes = figure.add_subplot()
        axes.boxplot([rng.normal(c, s, 80) for c, s in zip(centres, (3, 8, 5, 6))], tick_labels=groups, patch_artist=True)
        axes.set(title="Yield per plot", xlabel="Fertiliser", ylabel="kg")

    return Picture(
        _figure(rng, 420, 420, draw),
        [
            [
                ("Which fertiliser has the highest median yield?", groups[int(centres.argmax())]),
                ("Which one spreads the most?", "B: its box and whiskers are the longest."),
            ]
        ],
    )


def function_plot(rng, i) -> Picture:
    a, b = [(1, -4), (-1, 9), (2, -2)][i % 3]
    x = np.linspace(-4, 4, 200)

    def draw(figure):
        axes = figure.add_subplot()
        axes.plot(x, a * x**2 + b, color="#1f4e9c")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(ylim=(-10, 12), title=rf"$f(x) = {'' if a == 1 else '-' if a == -1 else a}x^2 {b:+d}$")
        axes.grid(alpha=0.4)

    root = (-b / a) ** 0.5
    answer = (
        f"Set f(x) = 0: x² = {-b / a:g}, so x = ±{root:g}. The curve is a parabola that opens "
        f"{'upwards' if a > 0 else 'downwards'} and crosses the x-axis at ({-root:g}, 0) and ({root:g}, 0)."
    )
    image = _figure(rng, *[(400, 400), (448, 360), (380, 440)][i % 3], draw, style="default")
    return Picture(image, [[("Where does the function cross the x-axis?", answer), ("What is f(0)?", str(b))]])


DRAWINGS = [
    *((bar_chart, 4), (grouped_bars, 3), (line_chart, 3), (pie_chart, 3), (scatter_plot, 3), (histogram, 2)),
    *((heatmap, 2), (radar_and_box, 2), (function_plot, 3)),
]
