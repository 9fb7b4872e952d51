"""
What rotated inputs are worth on the tiny VLM: the same recipe with and without, on the same questions.

    python benchmarks/rotation.py --formats w4a8 w4a8g64 w3g64 --rounding nearest gptq > rows.jsonl

One JSON line per run on standard output, with a paired-bootstrap interval of the ratio of its KL to the KL without.
Questions are the development ones: this chooses defaults.

The tiny VLM has none of the outliers of long-trained models. `--outliers 32` gives it some: in each block, a few
channels of what the linears read become 32 times as large, and the weights' columns 32 times as small. Its function is
the same.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from ledger import provenance
from transformers import AutoProcessor

from transformers_qaig import AutoModelForVision2Seq, CalibrationConfig, QAIGConfig
from transformers_qaig.plan import schemes
from transformers_qaig.report.evaluate import answer_logits, answer_statistics, encode_questions, paired_ratio

TINY_VLM = Path(__file__).parents[1] / "examples" / "tiny-vlm"
sys.path.insert(0, str(TINY_VLM))
from conversations import conversation  # noqa: E402

ROUNDING: dict[str, dict[str, Any]] = {
    "nearest": {"clipping": False, "rounding": "nearest", "validate": False},
    "clip": {"clipping": True, "rounding": "nearest", "validate": False},
    "gptq": {"clipping": True, "rounding": "gptq", "validate": False},
    "gptq-judged": {"clipping": True, "rounding": "gptq", "validate": True},
}
"""What is changed in the recipe `default`: `-judged` keeps a rotation only where held-back samples say so."""


def settings_of(text: str) -> dict[str, int]:
    """`w4a8g64` → bits, activation bits and group size; without `a` 16-bit activations, without `g` per channel."""
    match = re.fullmatch(r"w(\d)(?:a(8|16))?(?:g(\d+))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no format such as w4a8 or w3g64")
    bits, activation_bits, group_size = match.groups()
    return {"bits": int(bits), "activation_bits": int(activation_bits or 16), "group_size": int(group_size or -1)}


OUTLIERS = {"input_layernorm": 2, "post_attention_layernorm": 2, "mlp.up_proj": 4}
"""Where outliers are made: module → how many channels."""
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.up_proj": ("mlp.down_proj",),
}


@torch.no_grad()
def make_outliers(source: Path, factor: int, target: Path) -> None:
    """Save the model with outliers; `factor` must be a power of two, so that nothing is rounded."""
    model = AutoModelForVision2Seq.from_pretrained(source)
    generator = torch.Generator().manual_seed(0)
    for layer in model.model.language_model.layers:
        for name, count in OUTLIERS.items():
            weight = layer.get_submodule(name).weight
            channels = torch.randperm(weight.shape[0], generator=generator)[:count]
            weight[channels] *= factor
            for reader in READERS[name]:
                layer.get_submodule(reader).weight[:, channels] /= factor
    model.save_pretrained(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=["w4a8", "w4a8g64", "w3g64", "w2g64"])
    parser.add_argument("--rounding", nargs="+", default=["nearest", "clip", "gptq"], choices=ROUNDING)
    parser.add_argument("--blocks", type=int, nargs="+", default=[schemes.BLOCK], help="most channels in a block")
    parser.add_argument("--calibration", type=int, nargs="+", default=[0, 3000, 6000], help="first seeds")
    parser.add_argument("--outliers", type=int, default=1, help="a power of two")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=500, help="from seed --first-picture on, 2.1 questions each")
    parser.add_argument("--first-picture", type=int, default=10_000)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    print(json.dumps(provenance()), flush=True)
    model_path = TINY_VLM / "model"
    processor = AutoProcessor.from_pretrained(model_path)
    full = AutoModelForVision2Seq.from_pretrained(model_path).float()
    pictures = range(options.first_picture, options.first_picture + options.pictures)
    questions = encode_questions(processor, [conversation(s) for s in pictures], [full.config.text_config.eos_token_id])
    reference = answer_logits(full, questions)
    if options.outliers > 1:
        model_path = Path(tempfile.mkdtemp())
        make_outliers(TINY_VLM / "model", options.outliers, model_path)
    for first in options.calibration:
        data = [conversation(first + i) for i in range(options.samples)]
        for text in options.formats:
            for rounding in options.rounding:
                plain = None
                for block in [0, *options.blocks]:
                    schemes.BLOCK = block
                    config = QAIGConfig(
                        **settings_of(text),
                        recipe={"name": "default", **ROUNDING[rounding], "rotation": "all" if block else "none"},
                        dataset=data,
                        calibration=CalibrationConfig(processor=processor),
                        num_samples=options.samples,
                    )
                    start = time.perf_counter()
                    model = AutoModelForVision2Seq.from_pretrained(model_path, quantization_config=config)
                    seconds = time.perf_counter() - start
                    statistics = answer_statistics(model.to(torch.float32), processor, questions, reference=reference)
                    plain = plain or statistics
                    summary = statistics.summary()
                    entries = model.config.quantization_config.plan.values()
                    row = {
                        "format": text,
                        "rounding": rounding,
                        "block": block,
                        "outliers": options.outliers,
                        "calibration": first,
                        "samples": options.samples,
                        "questions": len(questions),
                        "kl": summary["kl"]["mean"],
                        "kl_se": summary["kl"]["standard_error"],
                        "kl_ratio_to_plain": list(paired_ratio(statistics, plain)),
                        "agreement": summary["agreement"]["mean"],
                        "exact_match": summary["exact_match"]["mean"],
                        "rotated": sum("rotation" in entry for entry in entries) / len(entries),
                        "output_error": sum(b.error for b in model.qaig_report.targets)
                        / len(model.qaig_report.targets),
                        "seconds": seconds,
                    }
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
