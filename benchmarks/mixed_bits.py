"""
What a choice of widths under a budget is worth: every cost against uniform widths of the same stored size.

    python benchmarks/mixed_bits.py > results.jsonl

The tiny VLM, quantized under budgets of stored bits, the widths chosen by each cost on each calibration set. The
yardstick is the uniform plans' KL at the very size of the chosen plan, interpolated between widths, on a logarithmic
scale (the stricter: KL falls about exponentially with bits) and on a linear one (about what linears taken at random at
each width give). One JSON line per run on standard output, a Markdown table on standard
error at the end; intervals are paired bootstraps over pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from ledger import provenance
from transformers import AutoProcessor

from transformers_qaig import AutoModelForVision2Seq, BitBudget, CalibrationConfig, QAIGConfig
from transformers_qaig.config import COSTS
from transformers_qaig.data.loader import load_inputs
from transformers_qaig.formats.scheme import plan_to_dict
from transformers_qaig.plan.allocate import allocate
from transformers_qaig.plan.build import list_schemes
from transformers_qaig.quantizer.bit_costs.measure import measure_costs
from transformers_qaig.report.evaluate import AnswerStatistics, answer_logits, answer_statistics, encode_questions
from transformers_qaig.report.statistics import resampled_kl

TINY_VLM = Path(__file__).parents[1] / "examples" / "tiny-vlm"
sys.path.insert(0, str(TINY_VLM))
from conversations import conversation  # noqa: E402

MODEL = TINY_VLM / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="+", default=[2.5, 3.0, 3.5], help="stored bits per weight")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 8], help="widths to choose from")
    parser.add_argument("--uniform", type=int, nargs="+", default=[2, 3, 4], help="widths of the yardstick")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--costs", nargs="+", default=sorted(COSTS))
    parser.add_argument("--calibration", type=int, nargs="+", default=[0, 3000, 6000], help="first seeds")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--pictures", type=int, default=300, help="from seed --first-picture on, 2.1 questions each")
    parser.add_argument("--first-picture", type=int, default=20_000)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    print(json.dumps(provenance()), flush=True)

    processor = AutoProcessor.from_pretrained(MODEL)
    full = AutoModelForVision2Seq.from_pretrained(MODEL).to(torch.float32)
    pictures = range(options.first_picture, options.first_picture + options.pictures)
    questions = encode_questions(processor, [conversation(s) for s in pictures], [full.config.text_config.eos_token_id])
    reference = answer_logits(full, questions)

    def evaluate(config: QAIGConfig) -> tuple[AnswerStatistics, float, float]:
        """Statistics, stored bits per weight, seconds to quantize."""
        start = time.perf_counter()
        model = AutoModelForVision2Seq.from_pretrained(MODEL, quantization_config=config)
        seconds = time.perf_counter() - start
        bits = model.qaig_report.bits_per_weight
        dense = model.dequantize(torch.float32).to(torch.float32)  # the same values, faster here
        return answer_statistics(dense, processor, questions, reference=reference), bits, seconds

    rows: list[dict[str, Any]] = []
    yardsticks: dict[int, dict[float, AnswerStatistics]] = {}

    def emit(statistics: AnswerStatistics, stored_bits: float, **facts: Any) -> None:
        summary = statistics.summary()
        row = {
            **facts,
            "stored_bits": stored_bits,
            "kl": summary["kl"]["mean"],
            "kl_se": summary["kl"]["standard_error"],
            "exact_match": summary["exact_match"]["mean"],
            "agreement": summary["agreement"]["mean"],
            "questions": len(questions),
            "group_size": options.group_size,
            "recipe": options.recipe,
            "threads": torch.get_num_threads(),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)

    settings = {"group_size": options.group_size, "recipe": options.recipe, "num_samples": options.samples}
    data = {first: [conversation(first + i) for i in range(options.samples)] for first in options.calibration}
    for first in options.calibration:
        yardsticks[first] = {}
        for width in options.uniform:
            statistics, bits, seconds = evaluate(QAIGConfig(bits=width, dataset=data[first], **settings))
            yardsticks[first][bits] = statistics
            emit(statistics, bits, plan="uniform", calibration=first, width=width, seconds=seconds)
    with tempfile.TemporaryDirectory() as folder:
        for cost in options.costs:
            for first in options.calibration:
                config = QAIGConfig(
                    budget=BitBudget(max(options.budgets), candidates=tuple(options.bits), cost=cost),
                    dataset=data[first],
                    calibration=CalibrationConfig(processor=processor, work_dir=f"{folder}/{first}"),
                    **settings,
                )
                model = AutoModelForVision2Seq.from_pretrained(MODEL).eval().requires_grad_(False)
                choices, coverage = list_schemes(model, config)
                start = time.perf_counter()
                choices = measure_costs(model, choices, load_inputs(model, config), config)
                measuring = time.perf_counter() - start
                for budget in options.budgets:
                    found = allocate(choices, budget * coverage.packed)
                    given = QAIGConfig(plan=plan_to_dict(found.schemes), dataset=data[first], **settings)
                    statistics, bits, seconds = evaluate(given)
                    emit(
                        statistics,
                        bits,
                        plan=cost,
                        calibration=first,
                        budget=budget,
                        predicted=found.cost,
                        ratio_log=ratio(statistics, bits, yardsticks[first], np.log, np.exp),
                        ratio_linear=ratio(statistics, bits, yardsticks[first], np.asarray, np.asarray),
                        widths={path: scheme.bits for path, scheme in found.schemes.items()},
                        seconds=seconds,
                        seconds_measuring=measuring,
                    )
    print(table(rows), file=sys.stderr)


def ratio(
    statistics: AnswerStatistics, bits: float, uniform: dict[float, AnswerStatistics], to: Any, back: Any
) -> list[float]:
    """KL over the uniform plans' KL interpolated to `bits` on the scale of `to`: the ratio and its 95 % interval."""
    sizes = sorted(uniform)
    right = min(max(int(np.searchsorted(sizes, bits)), 1), len(sizes) - 1)
    share = (bits - sizes[right - 1]) / (sizes[right] - sizes[right - 1])

    def interpolated(below: Any, above: Any) -> Any:
        return back((1 - share) * to(below) + share * to(above))

    below, above = uniform[sizes[right - 1]], uniform[sizes[right]]
    samples = resampled_kl(statistics) / interpolated(resampled_kl(below), resampled_kl(above))
    mean = _kl(statistics) / interpolated(_kl(below), _kl(above))
    return [float(mean), *map(float, np.quantile(samples, [0.025, 0.975]))]


def _kl(statistics: AnswerStatistics) -> float:
    return float(np.average(statistics.kl, weights=statistics.tokens))


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| plan | calibration | stored bits | KL | KL / uniform, log (95 %) | linear |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        log, linear = ("–", "–")
        if "ratio_log" in row:
            log, linear = ("{:.2f} ({:.2f} – {:.2f})".format(*row[name]) for name in ("ratio_log", "ratio_linear"))
        lines.append(
            f"| {row['plan']} | {row['calibration']} | {row['stored_bits']:.2f} "
            f"| {row['kl']:.5f} ± {row['kl_se']:.5f} | {log} | {linear} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
