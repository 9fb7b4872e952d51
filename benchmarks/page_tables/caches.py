"""What Transformers' quantized KV caches cost: answers, and the time of a token after a long context."""

from __future__ import annotations

from . import markdown, rows_of, table

NAMES = {
    "none": "not quantized",
    "fp8": "`fp8`",
    "hqq-8": "`hqq`, 8 bits",
    "hqq-4": "`hqq`, 4 bits",
    "quanto-4": "`quanto`, 4 bits",
    "hqq-2": "`hqq`, 2 bits",
    "hqq-2-g16": "`hqq`, 2 bits, groups of 16",
    "quanto-2": "`quanto`, 2 bits",
}


@table("kv-cache")
def kv_cache() -> str:
    order = list(NAMES)
    known = sorted(
        rows_of("kv_cache"), key=lambda row: (-row["weights"], row["recipe"] or "", order.index(row["cache"]))
    )
    rows = []
    for row in known:
        weights = "not packed" if row["weights"] == 16 else f"{row['weights']} bits, `{row['recipe']}`"
        error = f"{1e3 * row['kl']:.4f}\u00a0±\u00a0{1e3 * row['kl_se']:.4f}"
        rows.append([weights, NAMES[row["cache"]], error, f"{row['agreement']:.4f}", f"{row['exact_match']:.3f}"])
    return markdown(["weights", "cache", "KL, 1e-3", "same first choice", "exact match"], rows)


@table("kv-cache-speed")
def kv_cache_speed() -> str:
    known = {(row["cache"], row["context"]): row["cpu_seconds"] for row in rows_of("kv_cache_speed")}
    whole = known["none", 8192]
    rows = [
        [NAMES[cache], f"{context:,}", f"{1e3 * seconds:.0f}", f"{seconds / whole:.2f}"]
        for (cache, context), seconds in sorted(
            known.items(), key=lambda item: (item[0][1], list(NAMES).index(item[0][0]))
        )
    ]
    return markdown(["cache", "context", "ms of one thread", "× not quantized, 8,192"], rows)
