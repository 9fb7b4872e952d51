"""Compares quantized models with one full-precision model: as JSON, as a Markdown table, as a picture.

rows = [Row("fast", 3, answer_statistics(...), bits_per_weight=3.3, file_bytes=8_000_000), ...]
json.dumps(as_json(rows, baseline="rtn"))
print(table(rows, baseline="rtn"))
plot(rows, "kl.png")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..utils.files import written_whole
from .statistics import AnswerStatistics, paired_ratio
from .text import with_interval


@dataclass(frozen=True)
class Row:
    """One quantized model.

    Attributes:
        name: of the method; rows of one name become one line in the picture.
        setting: what else tells it from rows of the same name, such as its width.
        statistics: of its answers, with the full-precision model as reference.
        bits_per_weight: stored bits per quantized weight, scales and zero points included.
        file_bytes: of all weights of the saved model, quantized or not.
    """

    name: str
    setting: str
    statistics: AnswerStatistics
    bits_per_weight: float
    file_bytes: float


def as_json(rows: Sequence[Row], baseline: str | None = None) -> list[dict[str, Any]]:
    """Returns one dict per row: the figures of `AnswerStatistics.summary`, tasks included, and sizes.

    Args:
        rows: measured on the same questions.
        baseline: name of the method that each row's KL is divided by, where there is a row of it with the same
            setting: ``"kl_ratio"`` is [ratio, lower, upper], with a paired 95 % interval.

    Raises:
        ValueError: the rows to be paired were not measured on the same questions.
    """
    against = {row.setting: row.statistics for row in rows if row.name == baseline}
    found = []
    for row in rows:
        entry = {
            "name": row.name,
            "setting": row.setting,
            "bits_per_weight": row.bits_per_weight,
            "file_bytes": row.file_bytes,
            **row.statistics.summary(),
        }
        if row.setting in against:
            entry["kl_ratio"] = list(paired_ratio(row.statistics, against[row.setting]))
        found.append(entry)
    return found


def table(rows: Sequence[Row], baseline: str | None = None) -> str:
    """Formats the same as Markdown, without tasks; ± is one standard error."""
    head = ["method", "setting", "bits", "MB", "KL", "top-1 agreement", "perplexity", "exact match"]
    lines = [[*head, f"KL / {baseline} (95 %)"] if baseline else head]
    lines.append(["---"] * len(lines[0]))
    for entry in as_json(rows, baseline):
        cells = [
            entry["name"],
            entry["setting"],
            f"{entry['bits_per_weight']:.2f}",
            f"{entry['file_bytes'] / 1e6:.2f}",
            _with_error(entry.get("kl"), ".5f"),
            _with_error(entry.get("agreement"), ".4f"),
            _with_error(entry["perplexity"], ".4f"),
            _with_error(entry["exact_match"], ".3f"),
        ]
        if baseline:
            cells.append(with_interval(entry["kl_ratio"], ".2f") if "kl_ratio" in entry else "–")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plot(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Draws KL, logarithmic, with standard errors, against stored bits per weight and against the file's size.

    Raises:
        ValueError: no row has a KL above 0.
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Drawing needs matplotlib: `pip install matplotlib`.") from error
    entries = [entry for entry in as_json(rows) if entry.get("kl", {"mean": 0.0})["mean"] > 0]
    if not entries:
        raise ValueError("no row has a KL above 0: there is nothing to draw.")
    names = list(dict.fromkeys(entry["name"] for entry in entries))
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, unit in ((panels[0], "bits_per_weight", 1.0), (panels[1], "file_bytes", 1e6)):
        for index, name in enumerate(names):
            line = sorted((entry for entry in entries if entry["name"] == name), key=lambda entry: entry[key])
            axes.errorbar(
                [entry[key] / unit for entry in line],
                [entry["kl"]["mean"] for entry in line],
                [entry["kl"]["standard_error"] or 0.0 for entry in line],
                fmt="os^Dv<>ph*"[index % 10] + "-",
                color=f"C{index % 10}",
                linewidth=1,
                markersize=5,
                markerfacecolor=f"C{index % 10}" if index < 10 else "white",
                capsize=2,
                label=name,
            )
        axes.grid(alpha=0.3, which="both")
    panels[0].set(yscale="log", xlabel="stored bits per quantized weight", ylabel="KL of the answers, nats per token")
    panels[1].set(xlabel="size of the weights' file, MB")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _with_error(figure: dict[str, float | None] | None, digits: str) -> str:
    if figure is None:
        return "–"
    error = figure["standard_error"]
    return f"{figure['mean']:{digits}}" + ("" if error is None else f" ± {error:{digits}}")
