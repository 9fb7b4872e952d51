"""What a configuration may hold: every setting is checked before anything is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

import torch

from ..nn.hadamard import MAX_SEED
from ..plan.allocate import parse_size
from ..recipes import recipe_of
from ..scheme import BITS, check_entry, check_plan, is_int
from ..utils.quote import quote
from .devices import bytes_by_device

CHOICES = (2, 3, 4, 8)
"""Widths to choose from under a budget."""
MOST_BITS = 64
"""Bits per weight that a budget may allow: nothing is stored wider."""
MOST_SAMPLES = 2**31 - 1
COSTS = ("alone", "error", "fisher", "path")


def check_settings(config: Any) -> None:
    """Raise `ValueError`, naming the argument, if a setting of a `QAIGConfig` is of a wrong type or out of range."""
    _check_budget(config)
    for candidate in config.candidates:
        check_entry(candidate, "QAIGConfig")
    if config.stages is not None and not isinstance(config.stages, Mapping):
        raise ValueError(f"`stages` must map a recipe's attributes to values, got {quote(config.stages)}.")
    if not isinstance(config.recipe, str):
        raise ValueError(f"`recipe` must be a name, got {quote(config.recipe)}.")
    recipe_of(config.recipe, config.stages)
    for name in ("lm_head_bits", "embedding_bits", "vision_bits"):
        value = getattr(config, name)
        if value is not None and (not is_int(value) or value not in BITS):
            raise ValueError(f"`{name}` must be an integer from {BITS[0]} to {BITS[-1]}, or None, got {quote(value)}.")
    if not is_int(config.activation_bits) or config.activation_bits not in (8, 16):
        raise ValueError(
            f"`activation_bits` must be 16 (activations as they are) or 8, got {quote(config.activation_bits)}."
        )
    if not _is_number(config.min_coverage) or not 0 <= config.min_coverage <= 1:
        raise ValueError(f"`min_coverage` must be a share between 0 and 1, got {quote(config.min_coverage)}.")
    if not is_int(config.num_samples) or not 1 <= config.num_samples <= MOST_SAMPLES:
        raise ValueError(f"`num_samples` must be an integer from 1 to 2^31 - 1, got {quote(config.num_samples)}.")
    if not is_int(config.seed) or not 0 <= config.seed <= MAX_SEED:
        raise ValueError(f"`seed` must be an integer from 0 to 2^63 - 1, got {quote(config.seed)}.")
    skip = config.modules_to_not_convert
    if skip is not None and (not isinstance(skip, list) or not all(isinstance(s, str) for s in skip)):
        raise ValueError(f"`modules_to_not_convert` must be a list of paths or patterns, got {quote(skip)}.")
    if config.overrides is not None:
        _check_overrides(config.overrides)
    if config.plan is not None:
        check_plan(config.plan)
    _check_run(config)


def _check_overrides(overrides: Any) -> None:
    if not isinstance(overrides, Mapping):
        raise ValueError(f"`overrides` must map patterns to bits, got {quote(overrides)}.")
    for pattern, value in overrides.items():
        if not isinstance(pattern, str):
            raise ValueError(f"`overrides` must map patterns, which are strings, to bits, got {quote(pattern)}.")
        entry = {"bits": value} if not isinstance(value, Mapping) else value
        check_entry(entry, f"overrides[{quote(pattern)}]")


def _check_budget(config: Any) -> None:
    if config.target_bits is not None and config.target_size is not None:
        raise ValueError("`target_bits` and `target_size` are two ways to say one budget: give one of them.")
    if config.has_budget and not isinstance(config.bits, list):
        raise ValueError(
            f"`bits={quote(config.bits)}` leaves nothing to choose: under `target_bits` or `target_size` give several, "
            f"such as {list(CHOICES)}."
        )
    if isinstance(config.bits, list) and not config.has_budget:
        raise ValueError(
            f"`bits={quote(config.bits)}` are several to choose from, which needs `target_bits` or `target_size`; "
            "without one give one integer, and `overrides` for single weights."
        )
    if isinstance(config.bits, list) and not config.bits:
        raise ValueError("`bits` is empty: there is no width to choose.")
    target = config.target_bits
    if target is not None and not (_is_number(target) and 0 < target <= MOST_BITS):
        raise ValueError(f"`target_bits` must be a positive number of at most {MOST_BITS}, got {quote(target)}.")
    if config.target_size is not None:
        try:
            parse_size(config.target_size)
        except ValueError as error:
            raise ValueError(f"`target_size`: {error}") from error
    if config.cost not in COSTS:
        raise ValueError(f"`cost` must be one of {sorted(COSTS)}, got {quote(config.cost)}.")
    if not isinstance(config.fuse_groups, bool):
        raise ValueError(f"`fuse_groups` must be True or False, got {quote(config.fuse_groups)}.")


def _check_run(config: Any) -> None:
    """What is for the run only: found wrong later, it would cost a calibration."""
    for name in ("work_dir", "offload_folder"):
        folder = getattr(config, name)
        if folder is not None:
            check_folder(folder, name)
    if config.dataset_columns is not None and not isinstance(config.dataset_columns, Mapping):
        raise ValueError(f"`dataset_columns` must be a mapping, got {quote(config.dataset_columns)}.")
    bytes_by_device(config.max_memory)
    if config.calibration_device is not None:
        try:
            device = torch.device(config.calibration_device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"`calibration_device={quote(config.calibration_device)}` is no device: {error}"
            ) from error
        if device.type == "meta":
            raise ValueError("`calibration_device` is the meta device, which computes nothing.")


def check_folder(folder: Any, name: str) -> None:
    """Checks that a setting may be the path of a folder, which need not be there.

    Raises:
        ValueError: it is no path, or that of something else than a folder; `name` is the setting's.
    """
    path = os.fspath(folder) if isinstance(folder, (str, os.PathLike)) else None
    try:
        if not isinstance(path, str) or not path:
            raise ValueError
        status = os.stat(path)
    except FileNotFoundError:
        return
    except (ValueError, OSError) as error:  # a NUL, half of a surrogate, too long, a circle of links
        why = f" ({error})" if str(error) else ""
        raise ValueError(f"`{name}` must be the path of a folder, got {quote(folder)}{why}.") from error
    if not stat.S_ISDIR(status.st_mode):
        raise ValueError(f"`{name}` must be the path of a folder, and {folder} is a file.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
