"""Loads the models that are compared, quantized by any method, and the one processor that writes their questions."""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
)
from transformers.quantizers import AutoHfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from ..utils.errors import reason
from ..utils.logging import get_logger
from .arguments import UsageError, loading

logger = get_logger(__name__)

GPTQ_LIBRARIES = ("optimum", "gptqmodel")
INSTALL = "Install them: `pip install optimum gptqmodel`."


def require_method(name: str, device: torch.device, options: argparse.Namespace) -> None:
    """Asks Transformers whether it can load a checkpoint of this quantization method here; no weight is read.

    Raises:
        ImportError: a library of the method is missing, or refuses the device.
        ValueError, OSError: what Transformers raises.
    """
    config = AutoConfig.from_pretrained(name, **_access(name, options))
    text = config.get_text_config(decoder=True)
    settings = getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None)
    if not isinstance(settings, dict):
        return
    method = settings.get("quant_method")
    if method is not None and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        return  # Transformers warns, and loads the weights as they are
    if method == "gptq" and not all(map(importlib.util.find_spec, GPTQ_LIBRARIES)):
        # Without one of them, Transformers speaks of a GPU, or fails on a name that it could not import.
        raise ImportError(f"{name} is a GPTQ checkpoint: Transformers loads it with optimum and gptqmodel. {INSTALL}")
    try:
        AutoHfQuantizer.from_config(settings, pre_quantized=True).validate_environment(device_map={"": device})
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"{name} cannot be loaded here: {error}") from error


def load_model(
    name: str, device: torch.device, options: argparse.Namespace, adapter: str | None = None
) -> PreTrainedModel:
    """Loads a model onto a device: one that takes images, else a language model. An adapter goes onto it.

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
    if adapter is not None:
        model = _adapted(model, name, adapter, options)
    return model.eval()


def require_adapter(options: argparse.Namespace) -> None:
    """Reads the settings of the adapter; its weights are not read yet.

    Raises:
        UsageError: PEFT is missing, there is no adapter, or it adds tokens to the prompt.
    """
    if importlib.util.find_spec("peft") is None:
        raise UsageError("--adapter needs peft: pip install peft, or leave it out.")
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(options.adapter, token=options.token)
        if config.peft_type is None:
            raise KeyError(None)
    except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
        why = f"PEFT knows no `peft_type` {error}" if isinstance(error, KeyError) else reason(error)
        raise UsageError(f"--adapter {options.adapter}: it cannot be read as an adapter: {why}") from error
    if config.is_prompt_learning:
        raise UsageError(
            f"--adapter {options.adapter} adds tokens to the prompt, so that answers stand elsewhere: give one that "
            "changes layers, such as LoRA."
        )


def _adapted(model: PreTrainedModel, name: str, adapter: str, options: argparse.Namespace) -> PreTrainedModel:
    """Returns the model with the adapter on its layers.

    Raises:
        ValueError: the adapter is of another model, or damaged.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            # PEFT only warns of weights that the adapter has not, and would leave such layers without one.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted: Any = PeftModel.from_pretrained(model, adapter, token=options.token).get_base_model()
    except SafetensorError as error:
        raise ValueError(f"--adapter {adapter}: its weights cannot be read: {error}") from error
    except (RuntimeError, ValueError, TypeError, KeyError, UserWarning) as error:
        raise ValueError(f"--adapter {adapter} does not fit {name}: {error}") from error
    assert isinstance(adapted, PreTrainedModel)
    return adapted


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
