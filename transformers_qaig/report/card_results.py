"""Adds the figures of an evaluation to a saved model's card: a table, and the Hub's `model-index`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from .hub_names import dataset_id
from .statistics import LEAST

TASK = "image-text-to-text"
METRICS = {"exact_match": "exact_match", "kl": "kl_divergence", "agreement": "accuracy", "perplexity": "perplexity"}
"""Figure of an evaluation → the Hub's type of metric."""
_START, _END = "<!-- Written by `transformers-qaig evaluate --card`. -->", "<!-- End of the evaluation. -->"
_SECTION = re.compile(rf"\n*{re.escape(_START)}.*?{re.escape(_END)}\n*", re.S)
_COUNTS = ("questions", "conversations", "answer_tokens")


def open_card(card_file: Path) -> Any:
    """Returns a model's card, a `ModelCard`.

    Raises:
        ValueError: it is no text, or its metadata are not valid; the message names the file.
    """
    try:
        return ModelCard.load(card_file)
    except Exception as error:  # YAML raises errors of its own
        raise ValueError(
            f"the metadata of the model card {card_file} cannot be read ({error}): mend what stands between its two "
            "lines of ---."
        ) from error


def add_results(card_file: Path, result: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Writes figures into a card, in place of earlier ones of the same data; those that are finite.

    They go into the metadata, with their standard errors and the number of questions, and into a table for readers.

    Args:
        card_file: README.md of the model.
        result: what `transformers-qaig evaluate --json` prints.
        names: figure → how a reader calls it.

    Raises:
        ValueError: as [`open_card`] raises it.
    """
    card = open_card(card_file)
    data_id = dataset_id(result["data"])
    data = data_id or os.path.basename(os.path.normpath(result["data"]))
    measured = [
        EvalResult(
            task_type=TASK,
            dataset_type=data_id or "custom",
            dataset_name=data,
            dataset_config=None if data_id else data,  # by type and config the Hub tells sets apart
            metric_type=kind,
            metric_name=names[figure],
            metric_value=result[figure]["mean"],
            metric_args={name: result[name] for name in _COUNTS} | {"standard_error": result[figure]["standard_error"]},
        )
        for figure, kind in METRICS.items()
        if figure in result and math.isfinite(result[figure]["mean"])
    ]
    kept = [entry for entry in card.data.eval_results or [] if entry.dataset_name != data]
    card.data.model_name = card.data.model_name or card_file.absolute().parent.name
    card.data.eval_results = [*kept, *measured]
    card.text = _SECTION.sub("\n\n", card.text).rstrip("\n") + "\n\n" + _section(card.data.eval_results) + "\n"
    card.save(card_file)


def _section(results: Sequence[EvalResult]) -> str:
    """Returns the part of a card that shows what was measured, from its metadata."""
    ours = [entry for entry in results if set(_COUNTS) <= set(entry.metric_args or {})]
    rows = []
    for entry in ours:
        args = entry.metric_args or {}
        questions, conversations, tokens = (args[name] for name in _COUNTS)
        error = args.get("standard_error")
        said = f"{entry.metric_value:.4g}" + ("" if error is None else f" ± {error:.2g}")
        answers = f"{questions} answers of {tokens} tokens, in {conversations} conversations"
        rows.append(f"| `{entry.dataset_name}` | {entry.metric_name} | {said} | {answers} |")
    table = "\n".join(["| data | figure | value ± standard error | measured on |", "|" + " --- |" * 4, *rows])
    rule = f"The standard error is a bootstrap over conversations, of at least {LEAST}."
    return f"{_START}\n\n## Evaluation\n\n{table}\n\n{rule}\n\n{_END}"
