"""
What the whole file weighs, and what packing more than the language model's linears costs the answers.

    python benchmarks/whole_file.py > results.jsonl

One JSON line per setting on standard output, a Markdown table on standard error at the end:

* a 7 B VLM of Qwen2.5-VL-7B's shapes, made on the meta device from its configuration: bytes of each part, in bfloat16
  and packed. They are exact: what the tensors of the saved file take.
* the tiny VLM: the same, and the KL of its answers, each part packed in turn. Pictures are from the development seeds
  unless `--first-picture` says otherwise.
* with `--budgets 4x 4.5x`, the tiny VLM under these budgets for the whole file, costs measured once a calibration set.
  Each is compared with the best of the settings above, which are chosen by hand, that meets the budget, too: the ratio
  of the KLs with its 95 % interval, paired by question.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from ledger import provenance
from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from transformers_qaig import AutoModelForVision2Seq, BitBudget, QAIGConfig
from transformers_qaig.cli.plan import stored_bits
from transformers_qaig.data.loader import load_inputs
from transformers_qaig.formats.scheme import plan_to_dict
from transformers_qaig.plan.allocate import SchemeOption, allocate
from transformers_qaig.plan.build import list_schemes, make_plan
from transformers_qaig.plan.coverage import BLOCKS, Coverage
from transformers_qaig.quantizer.bit_costs.measure import measure_costs
from transformers_qaig.quantizer.saving.file_headers import predict_headers
from transformers_qaig.report.evaluate import answer_logits, answer_statistics, encode_questions
from transformers_qaig.report.statistics import AnswerStatistics, paired_ratio

TINY_VLM = Path(__file__).parents[1] / "examples" / "tiny-vlm"
sys.path.insert(0, str(TINY_VLM))
from conversations import conversation  # noqa: E402

PARTS = ("vision_bits", "lm_head_bits", "embedding_bits")
SEVEN_B = {
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
}
"""What differs between the configuration of Qwen2.5-VL-7B and the class's defaults."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("7b", "tiny"), default=["7b", "tiny"])
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4], help="of the language model's linears")
    parser.add_argument("--outside", type=int, nargs="+", default=[4, 6], help="of tower, head and embeddings")
    parser.add_argument("--together", action="store_true", help="pack all parts at once, not each in turn")
    parser.add_argument("--budgets", nargs="+", default=[], help="of the tiny VLM's file: ratios or sizes")
    parser.add_argument("--group-size", type=int, default=64, help="of the tiny VLM; the 7 B has 128")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--calibration", type=int, nargs="+", default=[0, 3000, 6000], help="first seeds")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=300, help="from seed --first-picture on, 2.1 questions each")
    parser.add_argument("--first-picture", type=int, default=10_000)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    print(json.dumps(provenance()), flush=True)
    rows = []
    runs = {"7b": seven_b, "tiny": tiny}
    for row in (row for name in options.models for row in runs[name](options)):
        rows.append(row)
        print(json.dumps(row), flush=True)
    print(table(rows), file=sys.stderr)


def settings(options: argparse.Namespace) -> list[dict[str, int]]:
    """Bits of every run: the blocks alone, each part beside them, everything; or everything alone."""
    found = []
    for bits in options.bits:
        found += [] if options.together else [{"bits": bits}]
        for outside in options.outside:
            found += [] if options.together else [{"bits": bits, part: outside} for part in PARTS]
            found.append({"bits": bits, **dict.fromkeys(PARTS, outside)})
    return found


def seven_b(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**SEVEN_B)).to(torch.bfloat16)
    for bits in settings(options):
        _, coverage = make_plan(model, QAIGConfig(group_size=128, **bits))  # type: ignore[arg-type]
        yield {"model": "7b", "group_size": 128, **bits, **sizes(coverage)}


def tiny(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    path = TINY_VLM / "model"
    processor, full = AutoProcessor.from_pretrained(path), AutoModelForVision2Seq.from_pretrained(path).float()
    pictures = range(options.first_picture, options.first_picture + options.pictures)
    questions = encode_questions(processor, [conversation(s) for s in pictures], [full.config.text_config.eos_token_id])
    reference = answer_logits(full, questions)

    def row_of(config: QAIGConfig) -> tuple[dict[str, Any], AnswerStatistics]:
        start = time.perf_counter()
        model = AutoModelForVision2Seq.from_pretrained(path, quantization_config=config)
        seconds = time.perf_counter() - start
        coverage = model.qaig_report.coverage
        model.to(torch.float32)
        statistics = answer_statistics(model, processor, questions, reference=reference)
        summary = statistics.summary()
        return {
            **sizes(coverage),
            "recipe": options.recipe,
            "samples": options.samples,
            "first_picture": options.first_picture,
            "questions": len(questions),
            "kl": summary["kl"]["mean"],
            "kl_se": summary["kl"]["standard_error"],
            "agreement": summary["agreement"]["mean"],
            "exact_match": summary["exact_match"]["mean"],
            "seconds": seconds,
        }, statistics

    for calibration in options.calibration:
        by_hand: list[tuple[dict[str, Any], AnswerStatistics]] = []
        common = {
            "group_size": options.group_size,
            "recipe": options.recipe,
            "dataset": [conversation(calibration + i) for i in range(options.samples)],
            "num_samples": options.samples,
        }
        facts = {"model": "tiny", "group_size": options.group_size, "calibration": calibration}
        for bits in settings(options):
            row, statistics = row_of(QAIGConfig(**common, **bits))  # type: ignore[arg-type]
            by_hand.append((facts | bits | row, statistics))
            yield by_hand[-1][0]
        if options.budgets:
            model = AutoModelForVision2Seq.from_pretrained(path).eval().requires_grad_(False)
            config = QAIGConfig(**common, budget="1x")
            choices, coverage = list_schemes(model, config)
            predict_headers(coverage, model, choices)
            start = time.perf_counter()
            choices = measure_costs(model, choices, load_inputs(model, config), config)
            seconds = time.perf_counter() - start
        for budget in options.budgets:
            found = allocate(choices, stored_bits(budget, coverage))
            plan = coverage.plan_of(found.schemes)
            row, statistics = row_of(QAIGConfig(**common, plan=plan_to_dict(plan)))
            row |= {"predicted": found.cost, "widths": widths_by_part(coverage, found.chosen), "seconds_costs": seconds}
            limit = BitBudget(size=budget).file_bytes(coverage.bfloat16 // 8)
            fitting = [pair for pair in by_hand if pair[0]["bytes"] <= limit]
            if fitting:
                best, others = min(fitting, key=lambda pair: pair[0]["kl"])
                row["best_by_hand"] = {part: best[part] for part in ("bits", *PARTS) if part in best}
                row["kl_ratio"] = paired_ratio(statistics, others)
            yield facts | {"budget": budget} | row


def widths_by_part(coverage: Coverage, chosen: Mapping[str, SchemeOption]) -> dict[str, dict[str, int]]:
    """How many weights of each part have which bits; those that stay as they are have their dtype's."""
    counts: dict[str, dict[str, int]] = {}
    for path, option in chosen.items():
        part = coverage.outside_choices[path].part if path in coverage.outside_choices else BLOCKS
        widths = counts.setdefault(part, {})
        widths[str(option.bits)] = widths.get(str(option.bits), 0) + 1
    return counts


def sizes(coverage: Coverage) -> dict[str, Any]:
    """Bytes of the whole model and of each part, before and after."""
    whole = coverage.whole
    return {
        "bytes": whole.saved // 8,
        "bytes_full": whole.full // 8,
        "times_smaller": whole.full / whole.saved,
        "parts": {name: [size.full // 8, size.saved // 8] for name, size in coverage.sizes.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| model | bits | tower | head | embeddings | MB | times smaller | KL | exact match |", "|" + "---|" * 9]
    for row in rows:
        widths = " | ".join(str(row.get(part, "–")) for part in PARTS)
        kl = f"{row['kl']:.5f} ± {row['kl_se'] or 0:.5f} | {row['exact_match']:.3f}" if "kl" in row else "– | –"
        lines.append(
            f"| {row['model']} | {row.get('bits') or row['budget']} | {widths} | {row['bytes'] / 1e6:,.1f} "
            f"| {row['times_smaller']:.2f} | {kl} |"
        )
    return "\n".join([*lines, *(comparison(row) for row in rows if "budget" in row)])


def comparison(row: dict[str, Any]) -> str:
    """A budget against the best setting chosen by hand that meets it."""
    if "kl_ratio" not in row:
        return f"{row['budget']}, calibration set {row['calibration']}: no setting chosen by hand is as small"
    ratio, low, high = row["kl_ratio"]
    interval = f" ({low:.2f} to {high:.2f})" if low is not None else ""
    hand = ", ".join(f"{part}={bits}" for part, bits in row["best_by_hand"].items())
    return f"{row['budget']}, calibration set {row['calibration']}: KL {ratio:.2f}{interval} of that of {hand}"


if __name__ == "__main__":
    main()
