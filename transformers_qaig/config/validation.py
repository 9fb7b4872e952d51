"""Checks every setting of a configuration before anything is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from ..formats.scheme import BITS, MAX_SEED, WeightScheme, check_fields, is_int, parse_plan
from ..utils.logging import get_logger
from ..utils.quote import quote
from .devices import bytes_by_device
from .file_format import QUANT_METHOD
from .folder import check_folder
from .misplaced import remedy
from .other_methods import ADVICE, TEXT_SETS

logger = get_logger(__name__)

MOST_SAMPLES = 2**31 - 1


def refuse_unknown(names: Iterable[str], known: Iterable[str]) -> None:
    """Raises `TypeError` for `names`, if there are any.

    For each, the message says what to write instead, or names the nearest of `known`.
    """
    known, said = list(known), []
    for name in names:
        if name in ADVICE:
            said.append(f"QAIGConfig has no `{name}`. {ADVICE[name]}")
        else:
            said.append(f"QAIGConfig got an unknown argument {quote(name)}. {remedy(name, known)}")
    if said:
        raise TypeError("\n".join(said))


def check_settings(settings: Mapping[str, Any], candidates: Iterable[WeightScheme]) -> None:
    """Checks the settings of a configuration.

    Args:
        settings: name of an attribute → its value.
        candidates: the schemes that they offer.

    Raises:
        ValueError: a setting is of a wrong type or out of range; the message names it.
    """
    if settings["quant_method"] != QUANT_METHOD:
        raise ValueError(f"`quant_method` must be {QUANT_METHOD!r}, got {quote(settings['quant_method'])}.")
    if settings["budget"] is not None and settings["bits"] is not None:
        raise ValueError(
            f"`bits={quote(settings['bits'])}` leaves nothing to choose under a budget: leave it out, or write "
            "budget=BitBudget(bits=..., candidates=(2, 3, 4, 8))."
        )
    for candidate in candidates:
        candidate.check("QAIGConfig")
    for name in ("lm_head_bits", "embedding_bits", "vision_bits"):
        value = settings[name]
        if value is not None and (not is_int(value) or value not in BITS):
            raise ValueError(f"`{name}` must be an integer from {BITS[0]} to {BITS[-1]}, or None, got {quote(value)}.")
    if not is_int(settings["activation_bits"]) or settings["activation_bits"] not in (8, 16):
        raise ValueError(
            f"`activation_bits` must be 16 (activations as they are) or 8, got {quote(settings['activation_bits'])}."
        )
    if not is_int(settings["num_samples"]) or not 1 <= settings["num_samples"] <= MOST_SAMPLES:
        raise ValueError(f"`num_samples` must be an integer from 1 to 2^31 - 1, got {quote(settings['num_samples'])}.")
    if not is_int(settings["seed"]) or not 0 <= settings["seed"] <= MAX_SEED:
        raise ValueError(f"`seed` must be an integer from 0 to 2^63 - 1, got {quote(settings['seed'])}.")
    skip = settings["modules_to_not_convert"]
    if skip is not None and (not isinstance(skip, list) or not all(isinstance(s, str) and s for s in skip)):
        raise ValueError(f"`modules_to_not_convert` must be a list of names or patterns, got {quote(skip)}.")
    if settings["overrides"] is not None:
        _check_overrides(settings["overrides"])
    if settings["plan"] is not None:
        parse_plan(settings["plan"])
    _check_dataset(settings["dataset"])
    bytes_by_device(settings["max_memory"])
    if settings["offload_folder"] is not None:
        check_folder(settings["offload_folder"], "offload_folder")


def warn_without_effect(settings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Warns of arguments that a given plan, or the rest of the recipe, leaves without effect.

    Args:
        settings: of the configuration: name of an attribute → its value.
        given: `bits`, `group_size` and `sym` as the user gave them; None for one that was not given.
    """
    for name, needs in settings["recipe"].without_effect.items():
        logger.warning(
            "recipe={%r: %r} has no effect: it needs %s. Leave `%s` out, or set that, too.",
            name, getattr(settings["recipe"], name), needs, name,
        )  # fmt: skip
    if settings["plan"] is None:
        return
    parts = ("vision_bits", "lm_head_bits", "embedding_bits")
    used = ("group_size", "sym") if any(settings[part] is not None for part in parts) else ()
    idle = [f"`{name}={quote(value)}`" for name, value in given.items() if value is not None and name not in used]
    if idle:
        logger.warning(
            "%s without effect beside `plan`, which says for each weight how it is stored: leave %s out, or change "
            "single weights with `overrides`.", " and ".join(idle), "it" if len(idle) == 1 else "them",
        )  # fmt: skip


def _check_overrides(overrides: Any) -> None:
    if not isinstance(overrides, Mapping):
        raise ValueError(f"`overrides` must map patterns to bits, got {quote(overrides)}.")
    for pattern, value in overrides.items():
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"`overrides` must map patterns, which are strings, to bits, got {quote(pattern)}.")
        fields = {"bits": value} if not isinstance(value, Mapping) else value
        check_fields(fields, f"overrides[{quote(pattern)}]")


def _check_dataset(dataset: object) -> None:
    if isinstance(dataset, str) and dataset in TEXT_SETS and not os.path.exists(dataset):
        raise ValueError(
            f"`dataset={dataset!r}` is a set of text, without images: leave `dataset` out for the bundled set, or give "
            "conversations with images."
        )
