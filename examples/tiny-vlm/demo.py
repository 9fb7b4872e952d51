"""Quantize the tiny VLM to 3 bits, save it, ask it in a new process, and show what it cost: `make demo`."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from conversations import conversation
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from transformers_qaig import CalibrationConfig, QAIGConfig
from transformers_qaig.data.samples import load_samples
from transformers_qaig.report.evaluate import (
    AnswerStatistics,
    answer_logits,
    answer_statistics,
    encode_questions,
    paired_ratio,
)
from transformers_qaig.report.heatmap import TokenMap, save_heatmaps

HERE = Path(__file__).resolve().parent
MODEL = HERE / "model"
OUT = HERE.parents[1] / "out" / "demo"
PICTURES = range(20_000, 20_300)  # fresh: kept apart for figures
SHOWN = (0, 2, 5, 6)  # pictures of the heatmap, which are its calibration set


def main() -> None:
    start = time.perf_counter()
    processor = AutoProcessor.from_pretrained(MODEL)
    full = AutoModelForImageTextToText.from_pretrained(MODEL)

    heading("Quantize")
    quantized = AutoModelForImageTextToText.from_pretrained(
        MODEL, quantization_config=QAIGConfig(bits=3, group_size=64)
    )
    print(quantized.qaig_report)
    rounded = AutoModelForImageTextToText.from_pretrained(
        MODEL, quantization_config=QAIGConfig(bits=3, group_size=64, recipe="rtn")
    )

    heading("Save")
    models = {"full precision": full, "round to nearest": rounded, "quantized": quantized}
    sizes = {name: save(model, processor, OUT / name.replace(" ", "-")) for name, model in models.items()}
    folder = OUT / "quantized"
    print(f"{sizes['quantized']:,} bytes in {folder}")

    heading("Reload in a new process and ask")
    subprocess.run([sys.executable, str(HERE / "ask.py"), str(folder)], check=True)

    questions = encode_questions(
        processor, [conversation(seed) for seed in PICTURES], [full.config.text_config.eos_token_id]
    )
    heading(f"Measure on {len(questions)} fresh questions")
    reference = answer_logits(full, questions)
    statistics = {n: answer_statistics(m, processor, questions, reference=reference) for n, m in models.items()}
    print(table(models, sizes, statistics))
    ratio, lower, upper = paired_ratio(statistics["quantized"], statistics["round to nearest"])
    print(f"\nKL of quantized / round to nearest: {ratio:.2f} (95 % interval {lower:.2f} to {upper:.2f})")

    heading("Token weights")
    image = OUT / "token_weights.png"
    save_heatmaps(image, token_maps(processor, [conversation(seed)[:2] for seed in SHOWN]))
    print(f"{image}\n\nDone in {time.perf_counter() - start:.0f} s.")


def save(model: PreTrainedModel, processor: Any, folder: Path) -> int:
    """Bytes of the weight file that `save_pretrained` writes."""
    model.save_pretrained(folder)  # a packed model brings its processor and a model card
    processor.save_pretrained(folder)
    return (folder / "model.safetensors").stat().st_size


def token_maps(processor: Any, conversations: Sequence[Any]) -> list[TokenMap]:
    """λ of each conversation's tokens in the paper's recipe: the mean over all blocks and their sub-blocks."""
    samples = load_samples(conversations, processor, num_samples=len(conversations), seed=0)
    model = AutoModelForImageTextToText.from_pretrained(
        MODEL,
        quantization_config=QAIGConfig(
            bits=3,
            group_size=64,
            recipe="paper",
            dataset=samples,
            num_samples=len(samples),
            calibration=CalibrationConfig(processor=processor),
        ),
    )
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    maps = []
    for index, (sample, messages) in enumerate(zip(samples, conversations)):
        ids = sample["input_ids"][0]
        weights = [w[index] for b in model.qaig_report.targets for w in b.token_weights.values() if index in w]
        maps.append(
            TokenMap(
                image=messages[0]["content"][0]["image"],
                tokens=processor.tokenizer.convert_ids_to_tokens(ids.tolist()),
                weights=torch.stack(weights).mean(0),
                image_positions=ids == model.config.image_token_id,
                grid=(side, side),
                title=messages[0]["content"][1]["text"],
            )
        )
    return maps


def table(models: dict[str, PreTrainedModel], sizes: dict[str, int], statistics: dict[str, AnswerStatistics]) -> str:
    """One column per model, full precision first."""
    figures = [statistics[name].summary() for name in models]
    reports = [getattr(model, "qaig_report", None) for model in models.values()]
    largest = max(sizes.values())
    rows = [
        ["", *models],
        ["weight file, bytes", *(f"{size:,}" for size in sizes.values())],
        ["  smaller by", *(f"{largest / size:.2f} ×" for size in sizes.values())],
        ["bits per packed weight", *(f"{r.bits_per_weight:.2f}" if r else "16" for r in reports)],
        ["seconds to quantize", *(f"{r.seconds:.1f}" if r else "-" for r in reports)],
        ["KL on answer tokens, 1e-3 nats", "-", *(plus_minus(f["kl"], 2, 1000) for f in figures[1:])],
        ["same first choice", "-", *(plus_minus(f["agreement"], 3) for f in figures[1:])],
        ["exact match", *(plus_minus(f["exact_match"], 3) for f in figures)],
    ]
    for task, first in figures[0]["tasks"].items():
        label = f"  {task} ({first['questions']})"
        rows.append([label, *(plus_minus(f["tasks"][task]["exact_match"], 3) for f in figures)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "   ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    )


def plus_minus(figure: dict[str, float | None], digits: int, times: float = 1) -> str:
    """Mean ± standard error, which needs 30 pictures."""
    error = figure["standard_error"]
    return f"{times * figure['mean']:.{digits}f}" + ("" if error is None else f" ± {times * error:.{digits}f}")


def heading(text: str) -> None:
    print(f"\n{text}\n{'─' * len(text)}", flush=True)


if __name__ == "__main__":
    main()
