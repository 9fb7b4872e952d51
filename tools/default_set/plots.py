"""Plots of measured data and functions."""

from __future__ import annotations

import numpy as np
from canvas import Picture
from charts import figure_image


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

    image = figure_image(rng, *[(480, 400), (400, 400), (448, 336)][i % 3], draw)
    answer = [
        "Positive: the more hours are practised, the higher the score tends to be. The dashed trend line rises from "
        "lower left to upper right, though single points scatter around it.",
        "Negative. Older cars are cheaper: the cloud of points and the dashed line fall from left to right.",
        "There is none to speak of. The points form a shapeless cloud, so the shoe size says nothing about the result.",
    ][i % 3]
    return Picture(
        image, [[("What kind of correlation does the plot show?", answer), ("What is on the x-axis?", labels[0])]]
    )


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
    image = figure_image(rng, *[(500, 360), (448, 400)][i % 2], draw)
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

    image = figure_image(rng, *[(540, 380), (460, 400)][i % 2], draw, style="default")
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
            figure_image(rng, 440, 440, draw, style="default"),
            [
                [
                    ("In which respects does Falcon beat Heron?", answer),
                    ("What type of chart is this?", "A radar chart."),
                ]
            ],
        )
    centres = rng.permutation([20, 32, 45, 58])
    groups = ["A", "B", "C", "D"]

    def draw(figure):
        axes = figure.add_subplot()
        axes.boxplot(
            [rng.normal(c, s, 80) for c, s in zip(centres, (3, 8, 5, 6))], tick_labels=groups, patch_artist=True
        )
        axes.set(title="Yield per plot", xlabel="Fertiliser", ylabel="kg")

    return Picture(
        figure_image(rng, 420, 420, draw),
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
    image = figure_image(rng, *[(400, 400), (448, 360), (380, 440)][i % 3], draw, style="default")
    return Picture(image, [[("Where does the function cross the x-axis?", answer), ("What is f(0)?", str(b))]])


DRAWINGS = [(scatter_plot, 3), (histogram, 2), (heatmap, 2), (radar_and_box, 2), (function_plot, 3)]
