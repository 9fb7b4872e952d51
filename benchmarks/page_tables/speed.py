"""What the kernels take, on a CPU and on a GPU."""

from __future__ import annotations

import functools
import statistics

from . import Row, markdown, rows_of, table

WIDTHS, ACTIVATIONS = (2, 3, 4, 8), (16, 8)


@functools.cache
def cpu_cells(isa: str) -> dict[tuple[int, int, int, int, int, int], Row]:
    """(K, N, threads, bits, activation bits, M) → our row that ran beside peers, with an instruction set."""
    found = {}
    for row in rows_of("cpu_gemm"):
        if row.get("op") == "qaig" and row.get("ratio_to_best_peer") is not None and row["cpu_isa"] == isa:
            activations = int(row["activations"].removeprefix("a"))
            found[row["k"], row["n"], row["threads"], row["bits"], activations, row["m"]] = row
    return found


@table("cpu-4096", "avx512")
@table("cpu-4096-amx", "amx")
def cpu_ratios(isa: str) -> str:
    """Best packed peer over ours. At M = 1024 16-bit activations are set against torch's bfloat16 product."""
    rows = []
    for bits in WIDTHS:
        for activations in ACTIVATIONS:
            cells = []
            for m in (1, 4, 16, 128, 1024):
                row = cpu_cells(isa).get((4096, 4096, 2, bits, activations, m))
                ratio = "ratio_to_bf16" if m == 1024 and activations == 16 else "ratio_to_best_peer"
                cells.append("–" if row is None else f"{row[ratio]:.2f}")
            rows.append([f"{bits} bits, A{activations}", *cells])
    return markdown(["", "M=1", "M=4", "M=16", "M=128", "M=1024"], rows)


@table("cpu-bf16-amx", "amx")
def cpu_bf16(isa: str) -> str:
    """Torch's bfloat16 product's time over ours, 4096×4096."""
    rows = []
    for threads in (1, 2):
        for bits in WIDTHS:
            for activations in ACTIVATIONS:
                places = [(4096, 4096, threads, bits, activations, m) for m in (1, 4, 16, 128, 512, 1024)]
                found = [cpu_cells(isa).get(place) for place in places]
                if any(found):
                    cells = ["–" if row is None else f"{row['ratio_to_bf16']:.2f}" for row in found]
                    rows.append([str(threads), f"{bits} bits, A{activations}", *cells])
    return markdown(["threads", "", "M=1", "M=4", "M=16", "M=128", "M=512", "M=1024"], rows)


@table("cpu-dense", "avx512")
def cpu_dense(isa: str) -> str:
    """Torch's bfloat16 product's time over ours with 16-bit activations, 1,024 tokens."""
    places = sorted({key[:3] for key in cpu_cells(isa)})
    rows = []
    for k, n, threads in places:
        cells = [cpu_cells(isa).get((k, n, threads, bits, 16, 1024)) for bits in WIDTHS]
        rows.append([f"{k}×{n}", str(threads), *("–" if c is None else f"{c['ratio_to_bf16']:.2f}" for c in cells)])
    return markdown(["K×N", "threads", *(f"{bits} bits" for bits in WIDTHS)], rows)


@table("cpu-slower", "avx512")
def cpu_slower(isa: str) -> str:
    """Cells in which the best packed peer is faster."""
    rows = []
    for (k, n, threads, bits, activations, m), row in sorted(cpu_cells(isa).items()):
        if row["ratio_to_best_peer"] < 1:
            shape = [f"{k}×{n}", str(threads), f"{bits} bits, A{activations}", str(m)]
            rows.append([*shape, row["best_peer"], f"{row['ratio_to_best_peer']:.2f}"])
    return markdown(["K×N", "threads", "", "M", "best peer", "its time / ours"], rows)


@table("cpu-generate", "avx512")
def cpu_generate(isa: str) -> str:
    known: dict[str, list[Row]] = {}
    for row in (row for row in rows_of("generate") if row["cpu_isa"] == isa):
        known.setdefault(row["variant"], []).append(row)
    names = {
        f"w{b}a{a}": f"{b} bits" + (", 8-bit activations" if a == 8 else "") for b in (8, 4, 3, 2) for a in (16, 8)
    }
    rows = []
    for variant, label in {"bf16": "bfloat16", **names, "bitsandbytes-nf4": "bitsandbytes nf4"}.items():
        ratios = [
            statistics.median(own[key] / base[key] for own, base in zip(known[variant], known["bf16"]))
            for key in ("prefill_tokens_per_s", "decode_tokens_per_s")
        ]
        medians = [
            statistics.median(row[key] for row in known[variant])
            for key in ("decode_tokens_per_s", "weights_mib", "peak_rss_mib")
        ]
        shown = ["1", "1"] if variant == "bf16" else [f"{ratios[0]:.2f}", f"{ratios[1]:.1f}"]
        rows.append([label, *shown, f"{medians[0]:.1f}", f"{medians[1]:,.0f}", f"{medians[2]:,.0f}"])
    return markdown(
        ["", "prefill × bf16", "decode × bf16", "decode tokens/s", "weights, MiB", "peak memory, MiB"], rows
    )


SERVED = {
    "bf16": "not packed, bfloat16",
    "fp32": "not packed, float32",
    "engine-w4": "4 bits, vLLM's own kernel",
    "ours-w4": "4 bits",
    "ours-w4a8": "4 bits, 8-bit activations",
    "ours-w3": "3 bits",
    "ours-w2": "2 bits",
    "ours-w8": "8 bits",
    "ours-w4-fp32": "4 bits, float32",
}
"""Variant of `serving.py` → its name."""


@table("serving-avx2", "avx2", "cpu")
@table("serving-avx512", "avx512", "cpu")
def serving(isa: str, clock: str) -> str:
    """Throughput of vLLM's engine by variant and batch: medians over rounds."""
    batches, known = (
        (1, 8, 32),
        [row for row in rows_of("serving") if (row["cpu_isa"], row.get("clock")) == (isa, clock)],
    )

    def rate(variant: str, batch: int, part: str) -> float:
        found = [row for row in known if row["variant"] == variant and row.get("batch") == batch]
        return statistics.median(row[f"{part}_tokens_per_s"] for row in found)

    rows = []
    for variant, label in SERVED.items():
        if not any(row["variant"] == variant and "batch" in row for row in known):
            continue  # the engine has no product for it on this processor
        decode = [rate(variant, batch, "decode") for batch in batches]
        over = [f"{own / rate('bf16', batch, 'decode'):.1f}" for own, batch in zip(decode, batches)]
        rows.append([label, f"{rate(variant, 32, 'prefill'):.0f}", *(f"{own:.0f}" for own in decode), *over])
    head = ["", "prefill, batch 32", *(f"decode, batch {b}" for b in batches), *(f"× bfloat16, {b}" for b in batches)]
    return markdown(head, rows)


@table("import-cost")
def import_cost() -> str:
    """What an installed package adds to processes that do not use it."""
    names = {
        "backends": "Python, and what `import torch` does for entry points",
        "transformers": "`import transformers`",
    }
    rows = []
    for row in rows_of("import_cost"):
        low, high = (f"{bound:.1f}" for bound in row["added_cpu_interval"])
        cost = f"{row['added_cpu_ms']:.1f} ({low} to {high})"
        rows.append([names[row["statement"]], f"{row['cpu_ms']:.0f}", cost, str(row["pairs"])])
    return markdown(["process", "without the package, ms", "added with it, ms", "pairs"], rows)


@functools.cache
def gpu_cells() -> dict[tuple[str, int, int, str], Row]:
    """("3584x18944", bits, M, candidate) → its row."""
    return {
        (f"{row['k']}x{row['n']}", row["bits"], row["m"], row["op"]): row
        for row in rows_of("gpu_gemm")
        if row.get("op") is not None
    }


@table("gpu-3584")
def gpu_ratios() -> str:
    tokens = (1, 8, 16, 32, 64, 512, 1024, 4096)
    rows = [
        [f"{b} bits", *(f"{gpu_cells()['3584x18944', b, m, 'qaig']['speed_over_bf16']:.2f}" for m in tokens)]
        for b in WIDTHS
    ]
    return markdown(["", *(f"M={m}" for m in tokens)], rows)


@table("gpu-one-token")
def gpu_one_token() -> str:
    rows = []
    for shape in ("5120x27648", "3584x18944", "18944x3584", "2048x11008", "3584x3584", "3584x512"):
        for bits in (3, 4):
            ours = gpu_cells()[shape, bits, 1, "qaig"]
            peers = [
                gpu_cells().get((shape, bits, 1, name)) for name in ("torch _weight_int4pack_mm", "bitsandbytes nf4")
            ]
            over = [f"{peer['us'] / ours['us']:.2f}" if peer is not None else "–" for peer in peers]
            rows.append(
                [shape.replace("x", "×"), str(bits), f"{ours['us']:.1f}", f"{ours['speed_over_bf16']:.2f}", *over]
            )
    head = ["K×N", "bits", "µs", "bfloat16 / ours", "`_weight_int4pack_mm` / ours", "bitsandbytes nf4 / ours"]
    return markdown(head, rows)
