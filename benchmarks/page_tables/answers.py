"""What quantization costs the answers, by method and width."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from accuracy_ledger import Ledger
from accuracy_table import comparison_rows, gather
from PIL import Image

from transformers_qaig.report.comparison import plot
from transformers_qaig.report.statistics import pooled

from . import RESULTS, markdown, table
from .figures import ACCURACY, MODELS, exact_match, kl, kl_cell, measured, ratio, stored_bits

ATTRIBUTED = "default-attributed"
VARIANTS = "default-"
"""How names of `default` with other widths or token weights begin: tables of their own hold these."""
OURS = ("rtn", "awq", "mbq", "paper", "authors", "fast", "gptq", "default", "best")


def is_variant(method: str) -> bool:
    return method.startswith(VARIANTS)


@table("accuracy-w2", (2, 16, 64))
@table("accuracy-w3", (3, 16, 64))
@table("accuracy-w4", (4, 16, 64))
@table("accuracy-w4a8", (4, 8, 64))
def accuracy(setting: tuple[int, int, int]) -> str:
    """Every method at one width, the largest KL first; `fast-equalized` is an earlier `fast`."""
    found = [
        name
        for (known, name), figures in measured(ACCURACY).items()
        if known == setting and figures and name != "fast-equalized" and not is_variant(name)
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
            if each == setting and figures and not is_variant(name)
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
    """`best` beside `default` and AutoRound, on the same grid, where a ledger has both."""
    rows = []
    models = {"tiny VLM": (ACCURACY, 64, ""), "story model": ("accuracy_story", 32, "-asym")}
    for title, (ledger, group_size, grid) in models.items():
        for bits, activation_bits in ((2, 16), (3, 16), (4, 16), (4, 8)):
            setting = bits, activation_bits, group_size
            if not measured(ledger).get((setting, "best")):
                continue
            width = f"W{bits}" if activation_bits == 16 else f"W{bits}A{activation_bits}"
            peers = ("default", f"auto-round{grid}", f"auto-round-best{grid}")
            known = [
                ratio(ledger, setting, "best", name) if measured(ledger).get((setting, name)) else None
                for name in peers
            ]
            rows.append([title, width, *("–" if found is None else found[0] for found in known)])
    head = ["model", "width", "`best` / `default`", "`best` / AutoRound, 200 steps", "`best` / AutoRound, 1,000 steps"]
    return markdown(head, rows)
