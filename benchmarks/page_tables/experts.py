"""What quantization costs the answers of the tiny VLM with experts."""

from __future__ import annotations

from . import markdown, table
from .answers import exact_match, kl, kl_cell, measured, pooled, ratio, stored_bits

EXPERTS = "accuracy_experts"
WIDTHS = {"W2": (2, 16, 64), "W3": (3, 16, 64), "W4": (4, 16, 64)}
ROUTING = {
    "default": "its square, as `default` does",
    "default-routing-linear": "the weight itself",
    "default-routing-unweighted": "1: all routed tokens alike",
}


@table("accuracy-experts")
def accuracy_experts() -> str:
    """Every method at every width, the largest KL first."""
    rows = []
    for title, setting in WIDTHS.items():
        known = {name: figures for (each, name), figures in measured(EXPERTS).items() if each == setting and figures}
        names = [name for name in known if name not in ROUTING or name == "default"]
        for name in sorted(names, key=lambda name: -kl(pooled(list(known[name].values())))):
            label = name if name.startswith("llm-compressor") else f"`{name}`"
            compared = ("–", "–") if name == "default" else ratio(EXPERTS, setting, "default", name)
            bits = f"{stored_bits(EXPERTS)[setting, name]:.2f}"
            cells = kl_cell(name, setting, EXPERTS), exact_match(name, setting, EXPERTS)
            rows.append([title, label, bits, *cells, *compared])
    head = ["width", "method", "stored bits", "KL, 1e-3", "exact match", "`default` / it", "by calibration set"]
    return markdown(head, rows)


@table("routing-weights")
def routing_weights() -> str:
    rows = []
    for name, words in ROUTING.items():
        for title, setting in WIDTHS.items():
            if (setting, name) in measured(EXPERTS):
                compared = ("–", "–") if name == "default" else ratio(EXPERTS, setting, name, "default")
                rows.append([title, words, kl_cell(name, setting, EXPERTS), *compared])
    rows.sort(key=lambda row: row[0])
    return markdown(["width", "a token counts by", "KL, 1e-3", "it / `default`", "by calibration set"], rows)
