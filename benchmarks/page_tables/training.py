"""What LoRA on packed weights costs: loss, time, memory."""

from __future__ import annotations

import statistics

from . import Row, markdown, rows_of, table

NAMES = {
    "bf16": "bfloat16",
    "fp32": "float32",
    "bitsandbytes-nf4": "bitsandbytes nf4",
    "other-adapters": "bfloat16, other adapters",
    "widths": "3, 4 or 8 bits",
    **{f"w{bits}": f"{bits} bits" for bits in range(9)},
}


@table("lora-loss")
def lora_loss() -> str:
    """Every step's loss against that of bfloat16 LoRA with the same trainer, learning rate and seed."""
    return _lora_loss("avx512")


@table("lora-loss-noise")
def lora_loss_noise() -> str:
    """The same beside bfloat16 LoRA whose adapters start otherwise, on another processor."""
    return _lora_loss("avx2")


def _lora_loss(isa: str) -> str:
    found = [row for row in rows_of("lora_loss") if row["cpu_isa"] == isa]
    known = {(row["learning_rate"], row["trainer"], row["seed"], row["base"]): row for row in found}
    groups: dict[tuple[float, str, str], list[int]] = {}
    for rate, trainer, seed, base in known:
        groups.setdefault((rate, trainer, base), []).append(seed)
    rows = []
    order = ("bfloat16", "float32", "other-adapters", "widths", "w4", "w3")
    for (rate, trainer, base), seeds in sorted(
        groups.items(), key=lambda item: (*item[0][:2], order.index(item[0][2]))
    ):
        found = [known[rate, trainer, seed, base] for seed in sorted(seeds)]
        changes = [
            [
                own / dense - 1
                for own, dense in zip(row["losses"], known[rate, trainer, row["seed"], "bfloat16"]["losses"])
            ]
            for row in found
        ]
        largest = max((change for each in changes for change in each), key=abs)
        within = ", ".join(str(sum(abs(change) <= 0.02 for change in each)) for each in changes)
        compared = ["–", "–"] if base == "bfloat16" else [f"{largest:+.1%}", f"{within} of {len(changes[0])}"]
        first, last = (statistics.mean(r["losses"][at] for r in found) for at in (0, -1))
        rows.append([f"`{trainer}`", f"{rate:g}", NAMES.get(base, base), str(len(seeds)), f"{first:.2f} → {last:.2f}"])
        rows[-1] += compared
        if found[0]["fresh"] is not None:
            before, after = (statistics.mean(r[when] for r in found) for when in ("fresh_before", "fresh"))
            rows[-1].append(f"{before:.0%} → {after:.0%}")
    head = ["trainer", "learning rate", "base", "seeds", "loss", "largest change", "steps within 2 %"]
    return markdown([*head, "other scenes right"][: len(rows[0])], rows)


@table("grad-input")
def grad_input() -> str:
    """bfloat16's time over a candidate's, by shape and tokens."""
    return _grad_input("avx512")


@table("grad-input-avx2")
def grad_input_avx2() -> str:
    """The same on a processor that multiplies no half precision, float32 beside it."""
    return _grad_input("avx2")


def _grad_input(isa: str) -> str:
    found = [row for row in rows_of("grad_input") if row["cpu_isa"] == isa]
    known = {(row["k"], row["n"], row["threads"], row["m"], row["op"]): row for row in found}
    layers = sorted({key[:3] for key in known})
    tokens = sorted({key[3] for key in known})
    names = [name for name in NAMES if name != "bf16" and any(key[4] == name for key in known)]
    rows = []
    for k, n, threads in layers:
        for name in names:
            cells = [known.get((k, n, threads, m, name)) for m in tokens]
            if any(cells):
                shown = [f"{cell['speed_over_bf16']:.2f}" if cell else "–" for cell in cells]
                rows.append([f"{k}×{n}", str(threads), NAMES[name], *shown])
    return markdown(["K×N", "threads", "weights", *(f"{m} tokens" for m in tokens)], rows)


@table("lora-steps")
def lora_steps() -> str:
    """Medians over the rounds."""
    return _lora_steps("avx512")


@table("lora-steps-avx2")
def lora_steps_avx2() -> str:
    """The same on a processor on which bfloat16 is too slow to be measured."""
    return _lora_steps("avx2")


def _lora_steps(isa: str) -> str:
    known: dict[tuple[int, str], list[Row]] = {}
    for row in (row for row in rows_of("lora") if row["cpu_isa"] == isa):
        known.setdefault((row["tokens"], row["variant"]), []).append(row)
    rows = []
    for (tokens, variant), found in sorted(known.items(), key=lambda item: (item[0][0], list(NAMES).index(item[0][1]))):
        step = statistics.median(row["step_s"] for row in found)
        dense = [row["step_s"] for row in known.get((tokens, "bf16"), [])]
        speed = f"{statistics.median(dense) / step:.2f}" if dense else "–"
        memory = [f"{statistics.median(row[key] for row in found):,.0f}" for key in ("model_mib", "added_mib")]
        rows.append([str(tokens), NAMES[variant], f"{step:.2f}", speed, *memory])
    return markdown(["tokens", "weights", "seconds a step", "× bfloat16's speed", "model, MiB", "steps add, MiB"], rows)
