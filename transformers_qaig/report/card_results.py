"""Adds the figures of an evaluation to a saved model's card, as the Hub's `model-index`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from .hub_names import dataset_id

TASK = "image-text-to-text"
METRICS = {"exact_match": "exact_match", "kl": "kl_divergence", "agreement": "accuracy", "perplexity": "perplexity"}
"""Figure of an evaluation → the Hub's type of metric."""


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
    """Writes figures into a card's metadata, in place of earlier ones of the same data; those that are finite.

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
            metric_type=kind,
            metric_name=names[figure],
            metric_value=result[figure]["mean"],
        )
        for figure, kind in METRICS.items()
        if figure in result and math.isfinite(result[figure]["mean"])
    ]
    kept = [entry for entry in card.data.eval_results or [] if entry.dataset_name != data]
    card.data.model_name = card.data.model_name or card_file.absolute().parent.name
    card.data.eval_results = [*kept, *measured]
    card.save(card_file)
