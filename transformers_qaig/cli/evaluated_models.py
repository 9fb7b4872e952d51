"""Loads the models that are compared, quantized by any method, and the one processor that writes their questions."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
)

from ..utils.logging import get_logger
from .arguments import loading

logger = get_logger(__name__)


def load_model(name: str, device: torch.device, options: argparse.Namespace) -> PreTrainedModel:
    """Loads a model onto a device: one that takes images, else a language model.

    Raises:
        ImportError: the library of its quantization method is missing.
        ValueError, OSError: what loading raises.
    """
    access = _access(name, options)
    config = AutoConfig.from_pretrained(name, **access)
    takes_images = type(config) in AutoModelForImageTextToText._model_mapping
    is_remote = hasattr(config, "auto_map") and "AutoModelForImageTextToText" in (config.auto_map or {})
    kind: Any = AutoModelForImageTextToText if takes_images or is_remote else AutoModelForCausalLM
    # By device_map: models of some methods cannot be moved afterwards.
    model: PreTrainedModel = kind.from_pretrained(name, device_map={"": device}, **access)
    return model.eval()


def shared_processor(options: argparse.Namespace) -> tuple[Any, str]:
    """Returns the processor that writes the questions for all models, and whose it is, in words.

    It is MODEL's, or FULL's if MODEL has none.

    Raises:
        ValueError: two models' tokenizers differ: their logits would be of other tokens.
        OSError: no model has a processor.
    """
    others = [name for name in (options.reference, options.baseline) if name is not None]
    found: dict[str, Any] = {}
    errors: list[Exception] = []
    for name in (options.model, *others):
        try:
            found[name] = AutoProcessor.from_pretrained(name, **_access(name, options))
        except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
            errors.append(error)
    if not found:
        raise OSError(f"{options.model} has no processor, nor has its reference: {errors[0]}") from errors[0]
    first, *rest = found
    differs = []
    for name in rest:
        if _vocabulary(found[first]) != _vocabulary(found[name]):
            raise ValueError(
                f"the tokenizers of {first} and {name} differ, so their predictions are of other tokens: compare "
                "models with one tokenizer."
            )
        if _described(found[first]) != _described(found[name]):
            differs.append(name)
    note = f"; that of {', '.join(differs)} differs, and is not used" if differs else ""
    if differs:
        logger.warning("The processors of %s and %s differ: every model reads what the first makes.", first, differs)
    return found[first], f"that of {first}{note}"


def _access(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Returns how to reach a model; `--revision` is MODEL's."""
    access = loading(options)
    return access if name == options.model else {**access, "revision": "main"}


def _vocabulary(processor: Any) -> Any:
    tokenizer = getattr(processor, "tokenizer", processor)
    return tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None


def _described(processor: Any) -> Any:
    """Returns the settings of a processor that change its inputs."""
    parts = [getattr(processor, name, None) for name in ("image_processor", "video_processor")]
    settings = [part.to_dict() if part is not None and hasattr(part, "to_dict") else None for part in parts]
    return settings, getattr(processor, "chat_template", None)
