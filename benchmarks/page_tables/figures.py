"""What the ledgers of accuracy say of a method at a setting: as figures, and as cells of a table."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from accuracy_ledger import Ledger
from accuracy_table import gather

from transformers_qaig.report.statistics import AnswerStatistics, pooled, resampled_kl

from . import RESULTS

ACCURACY = "accuracy"
MODELS = {
    "tiny VLM": (ACCURACY, 64),
    "tiny VLM with experts": ("accuracy_experts", 64),
    "second tiny VLM": ("accuracy_qwen", 64),
    "story model": ("accuracy_story", 32),
}
"""Model → its ledger, and the group size there."""
Figures = dict[Any, AnswerStatistics]
"""Calibration set, or `-` for a method that reads no data → what each question lost."""


@functools.cache
def measured(ledger: str) -> dict[Any, Figures]:
    """((bits, activation bits, group size), method) → calibration set → figures; rows with errors are left out."""
    groups = gather([Ledger(RESULTS / f"{ledger}.jsonl")])
    return {
        group: {row["calibration"]: figures for row, figures in rows if figures is not None}
        for group, rows in groups.items()
    }


@functools.cache
def stored_bits(ledger: str = ACCURACY) -> dict[Any, float]:
    groups = gather([Ledger(RESULTS / f"{ledger}.jsonl")])
    return {group: rows[0][0]["bits_per_weight"] for group, rows in groups.items() if "error" not in rows[0][0]}


def kl(figures: AnswerStatistics) -> float:
    """Mean KL per answer token, nats."""
    assert figures.kl is not None
    return float(np.average(figures.kl, weights=figures.tokens))


@functools.cache
def resampled(ledger: str, group: Any, sets: tuple[Any, ...]) -> Any:
    """Mean KL over some calibration sets in each bootstrap resample: one bootstrap a method, however often compared."""
    return resampled_kl(pooled([measured(ledger)[group][first] for first in sets]))


def ratio(ledger: str, setting: Any, name: str, peer: str) -> tuple[str, str]:
    """KL of `name` over that of `peer` with a paired 95 % interval, and for each calibration set that both have."""
    a, b = measured(ledger)[setting, name], measured(ledger)[setting, peer]
    shared = [first for first in a if first in b or "-" in b]
    of_b = [first if first in b else "-" for first in shared]
    means = [np.mean([kl(figures[first]) for first in sets]) for figures, sets in ((a, shared), (b, of_b))]
    above = resampled(ledger, (setting, name), tuple(shared))
    below = resampled(ledger, (setting, peer), tuple(dict.fromkeys(of_b)))
    whole = [float(means[0] / means[1]), *map(float, np.quantile(above / below, [0.025, 0.975]))]
    return interval(whole), ",\u00a0".join(f"{kl(a[one]) / kl(b[other]):.2f}" for one, other in zip(shared, of_b))


def interval(values: Sequence[float]) -> str:
    return "{:.2f}\u00a0({:.2f}–{:.2f})".format(*values)


def kl_cell(name: str, setting: Any, ledger: str = ACCURACY) -> str:
    sets = tuple(measured(ledger)[setting, name])
    mean = kl(pooled(list(measured(ledger)[setting, name].values())))
    return f"{1e3 * mean:.3f}\u00a0±\u00a0{1e3 * resampled(ledger, (setting, name), sets).std(ddof=1):.3f}"


def exact_match(name: str, setting: Any, ledger: str = ACCURACY) -> str:
    return f"{pooled(list(measured(ledger)[setting, name].values())).exact.mean():.3f}"
