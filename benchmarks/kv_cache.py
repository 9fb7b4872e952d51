"""
What a quantized KV cache costs the tiny VLM's answers, beside what its packed weights cost.

    pip install optimum-quanto hqq
    python benchmarks/kv_cache.py > rows.jsonl

One JSON line per cell on standard output. The caches are Transformers' own (`cache_implementation="quantized"`). This
needs Transformers 5.24: earlier ones lack `fp8`, and call a model's cache `past_key_values`.

A prompt is read, its keys and values are quantized, and the answer's tokens are read from that cache. KL and agreement
are with full precision and a cache that is not quantized. The first token of an answer is predicted before anything is
quantized; the others read the cache. `generated` is the share of the first `--generate` answers that `generate` gives
exactly. Weights and caches compute in float32. Pictures are from the development seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from ledger import PACKAGES, provenance
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache, QuantizedCache

from transformers_qaig import CalibrationConfig, QAIGConfig
from transformers_qaig.report.evaluate import Question, answer_logits, answer_statistics, encode_questions

TINY_VLM = Path(__file__).parents[1] / "examples" / "tiny-vlm"
sys.path.insert(0, str(TINY_VLM))
from conversations import conversation  # noqa: E402

HQQ = {"backend": "hqq", "axis_key": 1, "axis_value": 1}
"""Groups of 64 values of one token and head, as `quanto` has them by default."""
CACHES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "fp8": {"backend": "fp8"},
    "hqq-8": {**HQQ, "nbits": 8},
    "hqq-4": {**HQQ, "nbits": 4},
    "quanto-4": {"backend": "quanto", "nbits": 4},
    "hqq-2": {**HQQ, "nbits": 2},
    "hqq-2-g16": {**HQQ, "nbits": 2, "q_group_size": 16},
    "quanto-2": {"backend": "quanto", "nbits": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 4, 3], help="of the weights; 16: not packed")
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES))
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--work-dir", help="keeps finished blocks for a later run")
    parser.add_argument("--pictures", type=int, default=150, help="from seed --first-picture on, 2.1 questions each")
    parser.add_argument("--generate", type=int, default=50, help="questions that are also answered by generate()")
    parser.add_argument("--first-picture", type=int, default=10_000)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    print(json.dumps(provenance((*PACKAGES, "optimum-quanto", "hqq"))), flush=True)
    for row in answers(options):
        print(json.dumps(row), flush=True)


def answers(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    path = TINY_VLM / "model"
    processor = AutoProcessor.from_pretrained(path)
    full = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    pictures = range(options.first_picture, options.first_picture + options.pictures)
    questions = encode_questions(processor, [conversation(s) for s in pictures], [full.config.text_config.eos_token_id])
    reference, asked = answer_logits(full, questions), questions[: options.generate]
    for bits in options.bits:
        model = full if bits == 16 else packed(path, bits, options)
        for name in options.caches:
            figures = answer_statistics(
                [cached_logits(model, question, CACHES[name]) for question in questions],
                processor,
                questions,
                reference=reference,
            )
            summary = figures.summary()
            yield {
                "weights": bits,
                "cache": name,
                "questions": len(questions),
                "kl": summary["kl"]["mean"],
                "kl_se": summary["kl"]["standard_error"],
                "agreement": summary["agreement"]["mean"],
                "exact_match": summary["exact_match"]["mean"],
                "recipe": None if bits == 16 else options.recipe,
                "generated": sum(generated(model, question, CACHES[name]) for question in asked) / len(asked),
            }


def packed(path: Path, bits: int, options: argparse.Namespace) -> torch.nn.Module:
    data = [conversation(seed) for seed in range(options.samples)]
    work_dir = options.work_dir and f"{options.work_dir}/w{bits}"
    config = QAIGConfig(
        bits=bits,
        group_size=64,
        recipe=options.recipe,
        dataset=data,
        num_samples=options.samples,
        calibration=CalibrationConfig(work_dir=work_dir),
    )
    return AutoModelForImageTextToText.from_pretrained(path, quantization_config=config).to(torch.float32).eval()


@torch.no_grad()
def cached_logits(model: Any, question: Question, settings: dict[str, Any] | None) -> torch.Tensor:
    """Logits `[A, V]` that predict an answer's tokens, the later ones from the prompt's cached keys and values."""
    config = model.config.get_text_config(decoder=True)
    cache = DynamicCache(config=config) if settings is None else QuantizedCache(config=config, **settings)
    first = model(**prompt_of(question), cache=cache, use_cache=True).logits[0, -1:]
    said = question.inputs["input_ids"][:, question.start : question.stop - 1]
    if not said.shape[1]:
        return first
    mask = torch.ones(1, question.start + said.shape[1], dtype=torch.long)
    return torch.cat([first, model(input_ids=said, attention_mask=mask, cache=cache, use_cache=True).logits[0]])


def generated(model: Any, question: Question, settings: dict[str, Any] | None) -> bool:
    """Whether greedy decoding gives the answer."""
    kind = {} if settings is None else {"cache_implementation": "quantized", "cache_config": settings}
    length = question.stop - question.start
    said = model.generate(**prompt_of(question), do_sample=False, max_new_tokens=length, **kind)
    return torch.equal(said[0, question.start :], question.answer)


def prompt_of(question: Question) -> dict[str, torch.Tensor]:
    """A question's inputs without its answer."""
    length = question.inputs["input_ids"].shape[1]
    return {
        name: value[:, : question.start] if value.shape[1:2] == (length,) else value
        for name, value in question.inputs.items()
    }


if __name__ == "__main__":
    main()
