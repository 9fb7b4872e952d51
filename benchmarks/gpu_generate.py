"""
Calibration and generation on a GPU: the trained tiny VLM, and a random VLM whose language model has a 7B's shapes.

    python benchmarks/gpu_generate.py > rows.jsonl
    python benchmarks/gpu_generate.py --dry-run    # small models on the CPU: exercises this script, measures nothing

`generate`: the random VLM in bfloat16 and packed, by `model.generate` as a user calls it: prefill alone, then the time
of a new token as the difference between two lengths; with the default cache, and with the static one, with which
Transformers compiles the decoding step (CUDA graphs). `calibrate`: `from_pretrained` with a `QAIGConfig`, seconds and
peak memory, of the tiny VLM whole and of the random VLM's first layers, by layer. Each variant is a process of its own,
so that its peak of memory is its own. One JSON line each, a table on standard error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from generate import IMAGE_TOKEN, SIZES, VARIANTS, build
from ledger import provenance
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from transformers_qaig import QAIGConfig
from transformers_qaig.kernels import cuda

TINY_VLM = Path(__file__).parents[1] / "examples" / "tiny-vlm" / "model"
SHORT = 8
DRY_RUN = {"size": "tiny", "prompt": 300, "new_tokens": 4, "samples": 2, "layers": 1, "device": "cpu"}
DRY_RUN_NOTE = "dry run: the script was exercised, and its figures mean nothing"

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["generate", "calibrate"], choices=["generate", "calibrate"])
    parser.add_argument("--variants", nargs="+", default=["bf16", "w4a16", "w3a16", "w2a16"], choices=VARIANTS)
    parser.add_argument("--size", default="7b", help="of the random VLM's language model: 3b, 7b or tiny")
    parser.add_argument("--prompt", type=int, default=512, help="tokens, 256 of them an image's")
    parser.add_argument("--new-tokens", type=int, default=72)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2, help="of the random VLM, to calibrate")
    parser.add_argument("--samples", type=int, default=64, help="to calibrate on")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="small models on the CPU")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.dry_run:
        vars(options).update(DRY_RUN)
        options.new_tokens += SHORT
    if options.child:
        part, _, variant = options.child.partition(":")
        print(json.dumps(PARTS[part](variant, options)))
        return
    rows = [machine(options)]
    print(json.dumps(rows[0]), flush=True)
    work = [f"generate:{variant}" for variant in options.variants if "generate" in options.parts]
    work += [f"calibrate:{model}" for model in ("trained tiny VLM", options.size) if "calibrate" in options.parts]
    for name in work:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--child", name], stdout=subprocess.PIPE, text=True
        )
        part, _, variant = name.partition(":")
        row = json.loads(done.stdout) if done.returncode == 0 else {"failed": done.returncode}
        rows.append({"part": part, "variant": variant} | row)
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows), file=sys.stderr)


def machine(options: argparse.Namespace) -> Row:
    row: Row = provenance() | {"size": options.size, "prompt": options.prompt}
    if options.device == "cpu":
        return row | {"gpu": None, "note": DRY_RUN_NOTE}
    properties = torch.cuda.get_device_properties(options.device)
    cuda.load(torch.device(options.device))
    choice = cuda.choice(10 * properties.major + properties.minor)
    return row | {
        "machine": properties.name,
        "gpu": properties.name,
        "kernels": choice.origin,
        "why_not_better": choice.reasons,
    }


@torch.no_grad()
def generate(variant: str, options: argparse.Namespace) -> Row:
    """Prefill and decoding of the random VLM."""
    device = torch.device(options.device)
    model = build(variant, options.group_size, options.size, device=device)
    ids = torch.randint(0, model.config.text_config.vocab_size // 2, (1, options.prompt))
    ids[:, 8 : 8 + 256] = IMAGE_TOKEN[options.size]
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 224, 224).bfloat16()}
    inputs = {name: value.to(device) for name, value in inputs.items()}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])

    def tokens(count: int, cache: str | None) -> Callable[[], Any]:
        settings = {"do_sample": False, "min_new_tokens": count, "max_new_tokens": count, "pad_token_id": 0}
        if cache is not None:
            settings["cache_implementation"] = cache
        return lambda: model.generate(**inputs, **settings)

    prefill = seconds(lambda: model(**inputs, use_cache=True, logits_to_keep=1), device)
    row: Row = {"prefill_tokens_per_s": options.prompt / prefill}
    extra = options.new_tokens - SHORT
    for name, cache in (("decode", None), ("decode_static", "static")):
        try:
            step = (seconds(tokens(options.new_tokens, cache), device) - seconds(tokens(SHORT, cache), device)) / extra
            row[f"{name}_tokens_per_s"] = 1 / step
        except Exception as error:  # compiling may fail where the rest works
            row[f"{name}_failed"] = f"{type(error).__name__}: {error}"[:500]
    row["weights_gib"] = sum(p.nbytes for p in {id(p): p for p in model.parameters()}.values()) / 2**30
    return row | peak(device)


def calibrate(which: str, options: argparse.Namespace) -> Row:
    """Seconds of `from_pretrained` with quantization: the tiny VLM, or its tower before layers of another size."""
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        path = TINY_VLM if which != options.size and not options.dry_run else wide_model(Path(folder), options)
        config = QAIGConfig(bits=3, group_size=64, num_samples=options.samples)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # not that of making the model
        start = time.perf_counter()
        model = AutoModelForImageTextToText.from_pretrained(
            path, quantization_config=config, device_map={"": options.device}
        )
        synchronize(device)
        taken = time.perf_counter() - start
    layers = len(model.model.language_model.layers)
    return {"seconds": taken, "seconds_per_layer": taken / layers, "layers": layers, "samples": options.samples} | peak(
        device
    )


def wide_model(folder: Path, options: argparse.Namespace) -> Path:
    """The tiny VLM's processor and tower, before a few random layers of the size that is asked for."""
    config = AutoConfig.from_pretrained(TINY_VLM)
    for name, value in SIZES[options.size].items():
        if name not in ("vocab_size", "tie_word_embeddings"):
            setattr(config.text_config, name, value)
    config.text_config.num_hidden_layers = options.layers
    for name in ("layer_types", "head_dim"):
        if getattr(config.text_config, name, None) is not None:
            width = config.text_config.hidden_size // config.text_config.num_attention_heads
            setattr(config.text_config, name, ["full_attention"] * options.layers if name == "layer_types" else width)
    config.dtype = torch.bfloat16
    with torch.device(options.device):  # drawing a billion weights on the CPU takes a minute
        model = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(TINY_VLM).save_pretrained(folder)
    return folder


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Median of three calls after two that warm up: the second may still compile."""
    times = []
    for _ in range(5 if device.type == "cuda" else 2):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[-3:])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: torch.device) -> Row:
    return {"peak_gib": torch.cuda.max_memory_allocated(device) / 2**30} if device.type == "cuda" else {}


def table(rows: list[Row]) -> str:
    base = next((row for row in rows if row.get("variant") == "bf16"), {})
    names = {"prefill_tokens_per_s": "prefill", "decode_tokens_per_s": "decode", "decode_static_tokens_per_s": "static"}
    lines = [row["note"] for row in rows if "note" in row]
    lines += ["| | " + " | ".join(f"{name} tokens/s | × bf16" for name in names.values()) + " | peak GiB |"]
    lines += ["| --- |" + " --- |" * (2 * len(names) + 1)]
    for row in rows:
        if row.get("part") == "generate":
            cells = [row["variant"]]
            for key in names:
                known = key in row
                cells.append(f"{row[key]:.1f}" if known else "–")
                cells.append(f"{row[key] / base[key]:.2f}" if known and key in base else "–")
            lines.append("| " + " | ".join([*cells, f"{row['peak_gib']:.1f}" if "peak_gib" in row else "–"]) + " |")
    for row in rows:
        if row.get("part") == "calibrate" and "seconds" in row:
            memory = f", peak {row['peak_gib']:.1f} GiB" if "peak_gib" in row else ""
            lines.append(f"\nCalibrating {row['variant']}: {row['seconds']:.1f} s for {row['layers']} layers{memory}")
    return "\n".join(lines)


PARTS = {"generate": generate, "calibrate": calibrate}

if __name__ == "__main__":
    main()
