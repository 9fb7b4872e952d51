"""Runs `transformers-qaig evaluate MODEL DATA`: compares a model's answers with given ones."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from ..config.devices import check_device
from ..data.sources import choose_records, open_records
from ..report.evaluate import Question, answer_logits, answer_statistics, encode_questions
from ..report.text import aligned
from .arguments import UsageError, data_source, loading, require_model, set_loudness

Records = tuple[list[Any], Path | None]
FIGURES = {
    "exact_match": "answers given exactly",
    "kl": "KL to the reference, nats per token",
    "agreement": "same first choice as the reference",
    "perplexity": "perplexity of the answers",
}


def run(options: argparse.Namespace) -> None:
    """Measures and prints.

    Raises:
        UsageError: an argument is wrong; no model was loaded yet.
        ValueError, OSError: what loading or the data raise.
    """
    set_loudness(options)
    for name in ("num_samples", "batch_size"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}.")
    device = _device(options.device)
    records = _records(options)
    for name in (options.model, options.reference):
        if name is not None:
            require_model(name)
    processor = AutoProcessor.from_pretrained(options.model, **loading(options))
    # One model after the other: memory need not hold both.
    expected: list[Tensor] | None = None
    if options.reference is not None:
        access = {"token": options.token, "trust_remote_code": options.trust_remote_code}
        reference = _load(options.reference, device, access)
        questions = _questions(reference, processor, records)
        expected = answer_logits(reference, questions, batch_size=options.batch_size)
        del reference
    model = _load(options.model, device, loading(options))
    if options.reference is None:
        questions = _questions(model, processor, records)
    statistics = answer_statistics(model, processor, questions, reference=expected, batch_size=options.batch_size)
    summary = statistics.summary()
    if options.json:
        named = {"model": options.model, "reference": options.reference, "data": options.data}
        print(json.dumps({**named, **summary}, indent=1))
    else:
        print(table(summary))


def table(summary: dict[str, Any]) -> str:
    """Formats the figures of [`AnswerStatistics.summary`] as text, with exact matches of each task if there are any."""
    rows = [("", "mean", "± standard error")]
    rows += [(label, *_cells(summary[name])) for name, label in FIGURES.items() if name in summary]
    for task, figures in summary["tasks"].items():
        rows.append((f"  exactly, {task} ({figures['questions']})", *_cells(figures["exact_match"])))
    head = f"{summary['questions']:,} answers of {summary['answer_tokens']:,} tokens"
    return f"{head}\n\n{aligned(rows)}"


def _cells(figure: dict[str, float]) -> tuple[str, str]:
    return f"{figure['mean']:.4g}", f"{figure['standard_error']:.2g}"


def _load(name: str, device: torch.device, access: dict[str, Any]) -> PreTrainedModel:
    model: Any = AutoModelForImageTextToText.from_pretrained(name, **access)
    return model.to(device).eval()


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        check_device(name, "`--device`")
    except ValueError as error:
        raise UsageError(str(error)) from error
    return torch.device(name)


def _records(options: argparse.Namespace) -> Records:
    """Returns the conversations to use, and the folder that relative image paths start from."""
    records, folder = open_records(data_source(options.data), with_images=True, token=options.token)
    return [record for _, record in choose_records(records, options.num_samples, options.seed, False)], folder


def _questions(model: PreTrainedModel, processor: Any, records: Records) -> list[Question]:
    ends: int | Sequence[int] | None = model.generation_config.eos_token_id if model.generation_config else None
    tokens = [ends] if isinstance(ends, int) else list(ends or ())
    return encode_questions(processor, records[0], tokens, base_dir=records[1] or Path())
