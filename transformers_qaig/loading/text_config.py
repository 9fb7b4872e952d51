"""Marks a composite's text config as packed, too: a class of text alone reads nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..utils.errors import reason
from ..utils.json_file import read_json

QUANT_METHOD = "qaig"
LARGEST_CONFIG = 256 << 20
"""The most bytes of a config.json, which holds the plan: room for two million weights."""


def mark_text_config(config: PreTrainedConfig) -> None:
    """Makes the text config below `config` name this quantization method.

    `Qwen3_5ForCausalLM.from_pretrained` reads the text config of a composite's config.json, and would take packed
    weights for damaged ones. The settings stay in one place, where [`whole_settings`] finds them.
    """
    text = config.get_text_config(decoder=True)
    if text is not config:
        text.quantization_config = {"quant_method": QUANT_METHOD}


def unmark_text_config(config: PreTrainedConfig) -> None:
    """Undoes [`mark_text_config`], for a model whose weights are no longer packed."""
    text = config.get_text_config(decoder=True)
    if text is not config:
        vars(text).pop("quantization_config", None)


def whole_settings(checkpoint_files: Sequence[str] | None) -> dict[str, Any]:
    """Reads the quantization settings in the config.json beside the weights, for a model built from a part of it.

    Raises:
        ValueError: there is none that holds any.
    """
    file = Path(str((checkpoint_files or ["."])[0])).parent / "config.json"
    try:
        settings = read_json(file, LARGEST_CONFIG).get("quantization_config")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"This model's config names quant_method {QUANT_METHOD!r} without a `plan`, and {file}, where the plan "
            f"would be, cannot be read ({reason(error)})."
        ) from error
    if not isinstance(settings, dict) or settings.get("quant_method") != QUANT_METHOD or not settings.get("plan"):
        raise ValueError("config.json says quant_method 'qaig' but holds no `plan`: the checkpoint is damaged.")
    return settings
