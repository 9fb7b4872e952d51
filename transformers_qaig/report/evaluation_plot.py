"""Draws an evaluation: exact matches and KL by task, with standard errors. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.files import written_whole

PANELS = {"exact_match": "answers given exactly", "kl": "KL to the reference, nats per token"}


def plot(result: Mapping[str, Any], file: Path) -> None:
    """Draws what `transformers-qaig evaluate` found.

    Args:
        result: as the command writes it to JSON.
        file: picture to write.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Drawing needs matplotlib: `pip install matplotlib`.") from error
    shown = [name for name in PANELS if name in result]
    tasks = {"all": result, **result["tasks"]}
    figure = Figure(figsize=(5 * len(shown), 1.6 + 0.35 * len(tasks)), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    full = result.get("reference_figures")
    for axes, name in zip(panels, shown):
        figures = [task[name] for task in tasks.values()]
        rows = range(len(figures))
        axes.barh(rows, [f["mean"] for f in figures], xerr=[f["standard_error"] or 0.0 for f in figures], height=0.6)
        if name == "exact_match" and full is not None:
            means = [{"all": full, **full["tasks"]}[task][name]["mean"] for task in tasks]
            axes.plot(means, rows, "k|", markersize=14, label="reference")
            axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False)  # above, where no bar is
        axes.set_yticks(rows, [f"{task} ({part['questions']})" for task, part in tasks.items()], parse_math=False)
        axes.set_xlabel(PANELS[name])
        axes.grid(alpha=0.3, axis="x")
    panels[0].invert_yaxis()
    with written_whole(file) as temporary:
        figure.savefig(temporary, dpi=120)
