"""What quantization costs the answers of the tiny VLM, and what the saved files take."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_ledger import Ledger
from accuracy_table import comparison_rows, gather
from PIL import Image

from transformers_qaig.config.budget import RENAMED_COSTS
from transformers_qaig.report.comparison import plot
from transformers_qaig.report.statistics import AnswerStatistics, paired_ratio, pooled, resampled_kl

from . import RESULTS, markdown, rows_of, table

ACCURACY, TOKEN_WEIGHTS = "accuracy", "token_weights"
ATTRIBUTED = "default-attributed"
Figures = dict[Any, AnswerStatistics]
"""Calibration set, or `-` for a method that reads no data → what each question lost."""
OURS = ("rtn", "awq", "mbq", "paper", "authors", "fast", "gptq", "default", "best")


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


@table("accuracy-w2", (2, 16, 64))
@table("accuracy-w3", (3, 16, 64))
@table("accuracy-w4", (4, 16, 64))
@table("accuracy-w4a8", (4, 8, 64))
def accuracy(setting: tuple[int, int, int]) -> str:
    """Every method at one width, the largest KL first; `fast-equalized` is an earlier `fast`."""
    found = [
        name
        for (known, name), figures in measured(ACCURACY).items()
        if known == setting and figures and name not in ("fast-equalized", ATTRIBUTED)
    ]
    found.sort(key=lambda name: -kl(pooled(list(measured(ACCURACY)[setting, name].values()))))
    rows = []
    for name in found:
        label = "**`default`**" if name == "default" else f"`{name}`" if name in OURS else name
        compared = ("–", "–") if name == "default" else ratio(ACCURACY, setting, "default", name)
        bits = f"{stored_bits()[setting, name]:.2f}"
        rows.append([label, bits, kl_cell(name, setting), exact_match(name, setting), *compared])
    return markdown(["method", "stored bits", "KL, 1e-3", "exact match", "`default` / it", "by calibration set"], rows)


def by_width(ledger: str, widths: Mapping[str, tuple[int, int, int]], exact: bool = True) -> str:
    """Every method at every width, the largest KL first; `exact` adds the share of answers given exactly."""
    rows = []
    for title, setting in widths.items():
        known = {
            name: figures
            for (each, name), figures in measured(ledger).items()
            if each == setting and figures and name != ATTRIBUTED
        }
        if "default" not in known:
            continue
        for name in sorted(known, key=lambda name: -kl(pooled(list(known[name].values())))):
            label = f"`{name}`" if name in OURS else name
            compared = ("–", "–") if name == "default" else ratio(ledger, setting, "default", name)
            bits = f"{stored_bits(ledger)[setting, name]:.2f}"
            matches = [exact_match(name, setting, ledger)] if exact else []
            rows.append([title, label, bits, kl_cell(name, setting, ledger), *matches, *compared])
    more = ["exact match"] if exact else []
    head = ["width", "method", "stored bits", "KL, 1e-3", *more, "`default` / it", "by calibration set"]
    return markdown(head, rows)


STORY = {"W2": (2, 16, 32), "W3": (3, 16, 32), "W4": (4, 16, 32)}


@table("accuracy-story")
def accuracy_story() -> str:
    return by_width("accuracy_story", STORY, exact=False)  # whole texts are never given exactly


QWEN = {"W2": (2, 16, 64), "W3": (3, 16, 64), "W4": (4, 16, 64)}


@table("accuracy-qwen")
def accuracy_qwen() -> str:
    return by_width("accuracy_qwen", QWEN)


MODELS = {
    "tiny VLM": (ACCURACY, 64),
    "tiny VLM with experts": ("accuracy_experts", 64),
    "second tiny VLM": ("accuracy_qwen", 64),
    "story model": ("accuracy_story", 32),
}
"""Model → its ledger, and the group size there."""


@table("attributed-widths")
def attributed_widths() -> str:
    """`default` with widths of its own beside one width for all, where a ledger has both."""
    rows = []
    for title, (ledger, group_size) in MODELS.items():
        for bits in (4, 3):
            setting = (bits, 16, group_size)
            if not measured(ledger).get((setting, ATTRIBUTED)):
                continue
            sizes = "; ".join(f"{stored_bits(ledger)[setting, name]:.2f}" for name in ("default", ATTRIBUTED))
            each = [kl_cell(name, setting, ledger) for name in ("default", ATTRIBUTED)]
            rows.append([title, f"{bits}", sizes, *each, *ratio(ledger, setting, ATTRIBUTED, "default")])
    head = [
        "model",
        "bits",
        "stored bits",
        "KL with one width, 1e-3",
        "KL with several",
        "several / one",
        "by calibration set",
    ]
    return markdown(head, rows)


SUMMARY = {
    "default": "`default`",
    "gptq": "`gptq`",
    "llm-compressor-gptq-asym": "llm-compressor GPTQ, asymmetric",
    "auto-round-best": "AutoRound, 1,000 steps",
    "hqq": "HQQ",
    "rtn": "`rtn`, round to nearest",
}
"""The methods that stand for the rest in the README."""


@table("accuracy-summary")
def accuracy_summary() -> str:
    rows = []
    for name, label in SUMMARY.items():
        cells = [kl_cell(name, (bits, 16, 64)) for bits in (2, 3, 4)]
        w3 = (3, 16, 64)
        rows.append([label, *cells, exact_match(name, w3), f"{stored_bits()[w3, name]:.2f}"])
    return markdown(["KL of the answers, 1e-3", "W2", "W3", "W4", "W3: exact match", "W3: stored bits"], rows)


def draw_summary(path: Path) -> None:
    """The same as a picture: KL against stored bits and against the size of the file, in 64 colours."""
    known = gather([Ledger(RESULTS / f"{ACCURACY}.jsonl")])
    groups = {
        (setting, label.replace("`", "")): rows
        for name, label in SUMMARY.items()
        for (setting, method), rows in known.items()
        if method == name and setting[1] == 16
    }
    plot(comparison_rows(groups), path)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


@table("accuracy-best")
def best() -> str:
    rows = []
    for title, setting in (("W2", (2, 16, 64)), ("W3", (3, 16, 64)), ("W4", (4, 16, 64)), ("W4A8", (4, 8, 64))):
        against = ("default", "auto-round-best")
        rows.append([title, *(ratio(ACCURACY, setting, "best", name)[0] for name in against)])
    return markdown(["width", "`best` / `default`", "`best` / AutoRound with 1,000 steps"], rows)


@table("token-weights")
def token_weights() -> str:
    names = {
        "downstream": "KL of the answers, integrated (one node) from full precision to the quantized hidden states, "
        "through all later blocks",
        "balanced": "image and text equal in sum",
        "gradient": "gradient of the answers' loss",
        "qig-zero": "QIG, integrated from zero",
        "qig-by-kind": "QIG, with mean 1 among image tokens and among text tokens",
        "qig": "QIG",
        "qig-squared": "QIG, squared",
        "shuffled": "QIG, shuffled among the tokens of a sample",
    }
    rows = []
    for name, words in names.items():
        whole, each = ratio(TOKEN_WEIGHTS, (2, 16, 64), f"default-{name}", "default")
        rows.append([words, each, whole])
    return markdown(["token weights", "by calibration set", "together"], rows)


@table("token-weights-search")
def token_weights_search() -> str:
    """Scale search under QIG's weights, uniform ones and shuffled ones; rows are from the first version's ledger."""
    known: dict[tuple[int, str], list[str]] = {}
    for row in rows_of("token_weights_search"):
        known.setdefault((row["bits"], row["recipe"]), []).append(f"{row['kl_ratio_to_rtn'][0]:.2f}")
    columns = {"paper": ("paper", "paper-uniform", "paper-shuffled"), "fast": ("fast-qig", "fast", "fast-shuffled")}
    return markdown(
        ["bits", "recipe", "QIG", "uniform", "QIG, shuffled"],
        [
            [str(bits), f"`{name}`", *(", ".join(known[bits, column]) for column in columns[name])]
            for bits in (3, 2)
            for name in columns
        ],
    )


@table("token-weights-learned")
def token_weights_learned() -> str:
    ledger, setting = "token_weights_learned", (2, 16, 64)
    qig, uniform = (measured(ledger)[setting, name] for name in ("best-qig", "best"))
    each = ", ".join(interval(paired_ratio(qig[first], uniform[first])) for first in qig)
    rows = [["Hessian and loss of learned rounding (`best`)", each, ratio(ledger, setting, "best-qig", "best")[0]]]
    return markdown(["where QIG's weights are used", "by calibration set", "together"], rows)


@table("mixed-bits")
def mixed_bits() -> str:
    known = {
        (row["plan"], row["budget"], row["calibration"]): row
        for row in rows_of("mixed_bits")
        if row["plan"] != "uniform"
    }
    rows = []
    for cost in ("fisher", "alone", "error", "path"):
        for budget in (2.5, 3.0, 3.5):
            cells = [known[cost, budget, first] for first in (0, 3000, 6000)]
            linear = ", ".join(f"{row['ratio_linear'][0]:.2f}" for row in cells)
            rows.append(
                [
                    f"`{RENAMED_COSTS.get(cost, cost)}`",
                    f"{budget}",
                    *(interval(row["ratio_log"]) for row in cells),
                    linear,
                ]
            )
    return markdown(["`cost`", "bits", "set 1", "set 2", "set 3", "on a linear scale"], rows)


@table("rotation")
def rotation() -> str:
    lines = {
        "nearest": ("w4a8", "nearest", False),
        "clipped ranges, nearest": ("w4a8", "clip", False),
        "GPTQ": ("w4a8", "gptq", False),
        "GPTQ, kept where validation samples agree": ("w4a8", "gptq-judged", False),
        "GPTQ, group size 64": ("w4a8g64", "gptq", False),
        "GPTQ, model with outlier channels": ("w4a8", "gptq", True),
        "GPTQ, 2 bits, 16-bit activations, group size 64": ("w2g64", "gptq", False),
        "GPTQ, 3 bits, 16-bit activations, group size 64": ("w3g64", "gptq", False),
    }
    known: dict[Any, list[str]] = {}
    for row in rows_of("rotation"):
        if row["block"]:
            key = row["format"], row["rounding"], "outliers" in row
            known.setdefault(key, []).append(interval(row["kl_ratio_to_plain"]))
    return markdown(
        ["rounding", "rotated / not, by calibration set"], [[n, ", ".join(known[k])] for n, k in lines.items()]
    )
