"""Runs `transformers-qaig evaluate MODEL`: compares a model's answers with given ones, and with another model's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..config.devices import check_device
from ..data.columns import COLUMN_NAMES
from ..data.sources import choose_records, open_records
from ..report.answers import AnswerDetails, change_lines, changes
from ..report.batches import kl_of_batching
from ..report.card_results import add_results, open_card
from ..report.evaluate import answer_logits, answer_statistics
from ..report.evaluation_plot import plot
from ..report.page.comparison import FIGURES, evaluation_page
from ..report.questions import Question, encode_questions
from ..report.statistics import AnswerStatistics, interval_note, paired_differences, paired_ratio
from ..report.text import aligned, with_interval
from ..utils.files import write
from ..utils.logging import get_logger
from ..utils.printable import say
from .arguments import UsageError, data_source, require_model, require_picture_format, set_loudness
from .evaluated_models import load_model, require_adapter, require_method, shared_processor

logger = get_logger(__name__)

LARGEST_KL_OF_BATCHING = 0.1
"""Nats a token; bfloat16 on the tiny VLM moves KL by less than 1e-5."""
Records = tuple[list[Any], Path | None]


def run(options: argparse.Namespace) -> None:
    """Measures, prints, and writes what is asked for.

    Raises:
        UsageError: an argument is wrong; no model was loaded yet.
        ValueError, OSError: what loading or the data raise.
    """
    set_loudness(options)
    device = _device(options.device)
    columns = check(options)
    for name in compared(options):
        require_method(name, device, options)
    records = _records(options)
    processor, whose = shared_processor(options)

    # One model after the other: memory need not hold both.
    def load(name: str, adapter: str | None = None) -> tuple[PreTrainedModel, list[Question]]:
        model = load_model(name, device, options, adapter)
        questions = _questions(model, processor, records, columns)
        if options.batch_size != 1 and (kl := kl_of_batching(model, questions)) > LARGEST_KL_OF_BATCHING:
            logger.warning(
                "%s predicts one question otherwise if another is in its batch (KL %.2g): a kernel of its library is "
                "wrong. --batch-size 1 measures what `generate` gives for a single prompt.", name, kl,
            )  # fmt: skip
        return model, questions

    expected: Sequence[Tensor] | None = None
    theirs: list[AnswerDetails] = []
    if options.reference is not None:
        reference, questions = load(options.reference)
        expected = answer_logits(reference, questions, batch_size=options.batch_size)
        del reference
        full = answer_statistics(expected, processor, questions, details=theirs)
        _require_finite(full, options.reference)
    ours: list[AnswerDetails] = []
    model, own_questions = load(options.model, options.adapter)
    if options.reference is None:
        questions = own_questions
    statistics = answer_statistics(
        model, processor, questions, reference=expected, batch_size=options.batch_size, details=ours
    )
    _require_finite(statistics, options.model)
    del model
    result: dict[str, Any] = {
        "model": options.model, "adapter": options.adapter, "reference": options.reference, "data": options.data,
        "processor": whose,
        **statistics.summary(),
    }  # fmt: skip
    result["note"] = interval_note(result)
    text = f"{table(result)}\nprocessor: {whose}"
    if expected is not None:
        result["reference_figures"] = full.summary()
        result["paired"] = paired_differences(statistics, full)
        counts, described = changes(processor, questions, (full, statistics), (theirs, ours), options.changes)
        result |= {"changed_counts": counts, "changed": [change.to_dict() for change in described]}
        text += f"\n\n{paired_lines(result)}\n{change_lines(counts, described)}"
    if options.baseline is not None:
        other, _ = load(options.baseline)
        others = answer_statistics(other, processor, questions, reference=expected, batch_size=options.batch_size)
        _require_finite(others, options.baseline)
        result |= {"baseline": options.baseline, "kl_ratio": _ratio(statistics, others)}
        text += f"\nKL over that of {options.baseline}: {with_interval(result['kl_ratio'], '.3g')}"
    say(json.dumps(result, indent=1) if options.json else text)
    _write(options, result)


def _require_finite(statistics: AnswerStatistics, name: str) -> None:
    """Raises `ValueError` if the model predicts NaN: no figure would mean anything."""
    bad = int((~np.isfinite(statistics.nll)).sum())
    if bad:
        raise ValueError(
            f"{name}: predictions for {bad} of {len(statistics)} questions are not finite. Its weights hold NaN or "
            "overflow their dtype: get the checkpoint again, or save it in bfloat16 or float32."
        )


def check(options: argparse.Namespace) -> dict[str, str]:
    """Raises `UsageError` for a wrong argument, and returns the columns that were named."""
    for name in ("num_samples", "batch_size", "changes"):
        value, least = getattr(options, name), 0 if name == "changes" else 1
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {value}.")
    if (options.data is None) == (options.dataset is None):
        raise UsageError("give the conversations once: --dataset DATA.")
    options.data = options.data or options.dataset
    if options.baseline is not None and options.reference is None:
        raise UsageError("--baseline compares two models' KL to a third: give --reference, too.")
    for name in ("output", "html", "plot"):
        file = getattr(options, name)
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise UsageError(f"--{name} must be a file in a folder that is there, got {file}.")
    if options.plot is not None:
        require_picture_format(options.plot)
    if options.card:
        _check_card(options.model)
    if options.card and options.adapter is not None:
        raise UsageError("--card adds figures to the card of MODEL, and those are of MODEL with --adapter: give one.")
    for name in compared(options):
        require_model(name)
    if options.adapter is not None:
        require_adapter(options)
    columns: dict[str, str] = {}
    known = [*COLUMN_NAMES, "task"]
    for pair in options.columns or ():
        part, is_pair, column = pair.partition("=")
        if not is_pair or not column or part not in known:
            raise UsageError(f"--columns takes PART=COLUMN, with a PART of {', '.join(known)}; got {pair!r}.")
        if part in columns:
            raise UsageError(f"--columns names {part} twice, {columns[part]} and {column}: give it once.")
        columns[part] = column
    return columns


def compared(options: argparse.Namespace) -> list[str]:
    """Lists the models that are loaded, MODEL first."""
    return [name for name in (options.model, options.reference, options.baseline) if name is not None]


def _check_card(model: str) -> None:
    card = Path(model, "README.md")
    if not card.is_file():
        raise UsageError(f"--card adds figures to MODEL/README.md, and there is none in {model}.")
    try:
        open_card(card)
    except ValueError as error:
        raise UsageError(f"--card: {error}") from error


def table(summary: dict[str, Any]) -> str:
    """Formats the figures of [`AnswerStatistics.summary`] as text, with those of each task if there are any."""
    shown = [name for name in FIGURES if name in summary]
    rows = [("", "mean", "± standard error")]
    rows += [(FIGURES[name], *_cells(summary[name])) for name in shown]
    for task, figures in summary["tasks"].items():
        rows.append((f"  exactly, {task} ({figures['questions']})", *_cells(figures["exact_match"])))
        if "kl" in figures:
            rows.append((f"  KL, {task}", *_cells(figures["kl"])))
    head = f"{summary['questions']:,} answers of {summary['answer_tokens']:,} tokens"
    note = summary.get("note")
    return f"{head}\n\n{aligned(rows)}" + (f"\n{note}" if note else "")


def paired_lines(result: dict[str, Any]) -> str:
    """Formats the differences to the reference, each with its 95 % interval."""
    exact, perplexity = (result["paired"][name] for name in ("exact_match", "perplexity"))
    return (
        f"exact match minus the reference's: {with_interval(exact, '+.4f')}\n"
        f"perplexity over the reference's: {with_interval(perplexity, '.4f')}"
    )


def _cells(figure: dict[str, float | None]) -> tuple[str, str]:
    error = figure["standard_error"]
    return f"{figure['mean']:.4g}", "too few" if error is None else f"{error:.2g}"


def _ratio(model: AnswerStatistics, other: AnswerStatistics) -> list[float | None]:
    if other.kl is not None and not other.kl.any():
        raise ValueError("--baseline predicts the same as --reference, so nothing can be divided by its KL of 0.")
    return list(paired_ratio(model, other))


def _write(options: argparse.Namespace, result: dict[str, Any]) -> None:
    said = []
    if options.output is not None:
        write(options.output, json.dumps(result, indent=1) + "\n")
        said.append(f"figures: {options.output}")
    if options.html is not None:
        write(options.html, evaluation_page(result))
        said.append(f"page: {options.html}")
    if options.plot is not None:
        plot(result, options.plot)
        said.append(f"drawn: {options.plot}")
    if options.card:
        add_results(card := Path(options.model, "README.md"), result, FIGURES)
        said.append(f"model card: {card}")
    if said and not options.json:
        say("\n".join(said))


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


def _questions(model: PreTrainedModel, processor: Any, records: Records, columns: dict[str, str]) -> list[Question]:
    ends: int | Sequence[int] | None = model.generation_config.eos_token_id if model.generation_config else None
    tokens = [ends] if isinstance(ends, int) else list(ends or ())
    return encode_questions(processor, records[0], tokens, columns=columns or None, base_dir=records[1] or Path())
