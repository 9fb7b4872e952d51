"""What single choices cost the answers: token weights, how widths are chosen, rotated inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transformers_qaig.config.budget import RENAMED_COSTS
from transformers_qaig.report.statistics import AnswerStatistics, paired_ratio, resampled_kl

from . import markdown, rows_of, table
from .figures import MODELS, Figures, interval, kl, measured, ratio

TOKEN_WEIGHTS = "token_weights"


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


def compared(kind: str) -> Iterator[tuple[str, int, Figures, Figures]]:
    """Yields model, bits, and figures of `default` with QIG's weights or shuffled ones, and with uniform ones.

    Args:
        kind: `"qig"` or `"shuffled"`. QIG's have mean 1 among image tokens and among text tokens.
    """
    ledgers = [*MODELS.items(), ("tiny VLM, earlier version, other sets", (TOKEN_WEIGHTS, 64))]
    for title, (ledger, group_size) in ledgers:
        for bits in (2, 3):
            setting = bits, 16, group_size
            names = ("default-qig-by-kind", "default-qig") if kind == "qig" else ("default-shuffled",)
            weighed = next((found for name in names if (found := measured(ledger).get((setting, name)))), None)
            if weighed:
                uniform = measured(ledger)[setting, "default"]
                yield title, bits, weighed, {first: uniform[first] for first in weighed}


def together(cells: Sequence[tuple[AnswerStatistics, AnswerStatistics]]) -> str:
    """The geometric mean of ratios of KL, with a 95 % interval that resamples runs and each run's pictures."""
    logs = np.log([kl(above) / kl(below) for above, below in cells])
    noise = np.array([np.log(resampled_kl(above) / resampled_kl(below)) for above, below in cells])
    rng = np.random.default_rng(0)
    runs = rng.integers(len(cells), size=(noise.shape[1], len(cells)))
    means = np.take_along_axis(noise.T, runs, axis=1).mean(axis=1)
    return interval(np.exp([logs.mean(), *np.quantile(means, [0.025, 0.975])]))


@table("token-weights-together")
def token_weights_together() -> str:
    """Every model, width and calibration set there is, and one ratio for all of them."""
    rows = []
    for kind, words in (("qig", "QIG"), ("shuffled", "QIG, shuffled")):
        runs: list[tuple[AnswerStatistics, AnswerStatistics]] = []
        for title, bits, weighed, uniform in compared(kind):
            pairs = [(weighed[first], uniform[first]) for first in weighed]
            each = ",\u00a0".join(f"{kl(above) / kl(below):.2f}" for above, below in pairs)
            rows.append([words, title, f"{bits}", each, together(pairs)])
            runs += pairs
        rows.append([f"**{words}**", f"all {len(runs)} runs", "", "", f"**{together(runs)}**"])
    return markdown(["token weights", "model", "bits", "by calibration set", "together"], rows)


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
