"""
How much of the tiny VLM's answers survives: every recipe against round-to-nearest on the same fresh questions.

    python benchmarks/accuracy.py --bits 2 3 --recipes rtn paper fast > results.jsonl

One JSON line per run on standard output, with paired-bootstrap intervals of the ratio of KL to round-to-nearest; a
Markdown table on standard error at the end. `NAME-uniform` and `NAME-shuffled` are recipe NAME with uniform token
weights, and with QIG's own weights dealt out at random among a sample's tokens: what QIG itself is worth.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoProcessor

import transformers_qaig
from transformers_qaig import AutoModelForVision2Seq, QAIGConfig
from transformers_qaig.evaluate import answer_logits, answer_statistics, encode_questions, paired_ratio
from transformers_qaig.recipes import RECIPES

TINY_VLM = Path(__file__).parents[1] / "examples" / "tiny-vlm"
sys.path.insert(0, str(TINY_VLM))
from conversations import conversation  # noqa: E402


def recipe_of(name: str) -> str:
    """Make a variant such as `fast-uniform` known to the package."""
    base, _, weights = name.partition("-")
    if weights:
        RECIPES[name] = dataclasses.replace(RECIPES[base], token_weights=weights)  # type: ignore[arg-type]
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[3])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--recipes", nargs="+", default=["paper", "fast"], help="round-to-nearest is always run")
    parser.add_argument("--calibration", nargs="+", default=["0", "3000", "6000"], help="first seeds, or `default`")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=500, help="from seed --first-picture on, 2.1 questions each")
    parser.add_argument("--first-picture", type=int, default=20_000)
    parser.add_argument("--dtype", default="float32", help="arithmetic of the evaluation")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    dtype = getattr(torch, options.dtype)
    model_path = TINY_VLM / "model"

    processor = AutoProcessor.from_pretrained(model_path)
    full = AutoModelForVision2Seq.from_pretrained(model_path).to(dtype)
    pictures = range(options.first_picture, options.first_picture + options.pictures)
    questions = encode_questions(processor, [conversation(s) for s in pictures], [full.config.text_config.eos_token_id])
    reference = answer_logits(full, questions)
    exact_full = answer_statistics(full, processor, questions, reference=reference).summary()["exact_match"]["mean"]

    rows = []
    for bits in options.bits:
        baseline = None
        runs = [("rtn", "-")] + [(r, c) for c in options.calibration for r in options.recipes if r != "rtn"]
        for recipe, calibration in runs:
            data = None
            if calibration.isdigit():
                data = [conversation(int(calibration) + i) for i in range(options.samples)]
            config = QAIGConfig(
                bits=bits,
                group_size=options.group_size,
                recipe=recipe_of(recipe),
                dataset=data,
                num_samples=options.samples,
            )
            start = time.perf_counter()
            model = AutoModelForVision2Seq.from_pretrained(model_path, quantization_config=config)
            seconds = time.perf_counter() - start
            model.to(dtype)
            statistics = answer_statistics(model, processor, questions, reference=reference)
            baseline = baseline or statistics
            summary = statistics.summary()
            ratio, lower, upper = paired_ratio(statistics, baseline)
            row = {
                "bits": bits,
                "group_size": options.group_size,
                "recipe": recipe,
                "calibration": calibration,
                "samples": options.samples,
                "questions": len(questions),
                "dtype": options.dtype,
                "kl": summary["kl"]["mean"],
                "kl_se": summary["kl"]["standard_error"],
                "kl_ratio_to_rtn": [ratio, lower, upper],
                "exact_match": summary["exact_match"]["mean"],
                "exact_match_full_precision": exact_full,
                "agreement": summary["agreement"]["mean"],
                "kept": sum(len(block.kept) for block in model.qaig_report.blocks),
                "undone": sum(len(block.undone) for block in model.qaig_report.blocks),
                "seconds": seconds,
                "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "date": datetime.date.today().isoformat(),
                "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
                "versions": {m.__name__: m.__version__ for m in (torch, transformers, transformers_qaig)},
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    print(table(rows), file=sys.stderr)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| bits | recipe | calibration | KL | KL / rtn (95 %) | exact match | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio, lower, upper = row["kl_ratio_to_rtn"]
        lines.append(
            f"| {row['bits']} | {row['recipe']} | {row['calibration']} | {row['kl']:.5f} ± {row['kl_se']:.5f} "
            f"| {ratio:.2f} ({lower:.2f} – {upper:.2f}) | {row['exact_match']:.3f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
