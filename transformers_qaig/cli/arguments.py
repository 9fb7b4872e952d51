"""Checks command-line arguments and converts them for the package."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import AutoConfig
from transformers.utils import logging

from ..config import CANDIDATES, DEFAULT_COST, BitBudget, CalibrationConfig, QAIGConfig
from ..config.budget import DEFAULT_BUDGET
from ..data.sources import TABLES, is_data_folder
from ..utils.errors import SettingError

DATA_FILES = (".json", ".jsonl")


class UsageError(SettingError):
    """An argument is wrong; no work was begun."""


def set_loudness(options: argparse.Namespace) -> None:
    """Switches messages and progress bars as `--quiet` and `--verbose` say."""
    if options.quiet:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    elif options.verbose:
        logging.set_verbosity_info()


def loading(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `from_pretrained` for MODEL."""
    return {
        "revision": options.revision or "main",
        "token": options.token,
        "trust_remote_code": options.trust_remote_code,
    }


def require_model(name: str) -> None:
    """Raises `UsageError` unless `name` is the folder of a model, or may be one on the Hub."""
    path = Path(name)
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise UsageError(f"the folder {name} holds an adapter: give the model that it is for.")
        if not (path / "config.json").is_file():
            raise UsageError(f"the folder {name} holds no model: it has no config.json.")
        return
    if path.exists():
        raise UsageError(f"{name} is a file: give the folder of a model, or its Hub id.")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"there is no folder {name}, and no model on the Hub can be called so.") from error


def require_unquantized(options: argparse.Namespace) -> None:
    """Raises `UsageError` if MODEL is quantized already or no model, and `OSError` if it cannot be reached."""
    require_model(options.model)
    try:
        config = AutoConfig.from_pretrained(options.model, **loading(options))
    except OSError as error:
        if Path(options.model).is_dir():
            raise
        raise OSError(f"there is no folder {options.model} here, and on the Hub it is not found: {error}") from error
    found = getattr(config, "quantization_config", None)
    if found is not None:
        method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", "unknown")
        raise UsageError(f"{options.model} is quantized already ({method}): give the model in full precision.")


def require_picture_format(file: Path) -> None:
    """Raises `UsageError` unless matplotlib is there and can write a file with this ending."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install matplotlib, or leave it out.")
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if file.suffix[1:].lower() not in known:
        raise UsageError(f"--plot {file}: pictures end in one of {', '.join(known)}.")


def data_source(name: str | None) -> str | None:
    """Returns a dataset for `QAIGConfig`: the one file of a folder, a folder for `datasets`, else the given name.

    Raises:
        UsageError: there is no such file, or the folder holds neither exactly one nor tables.
    """
    path = Path(name or "").expanduser()
    if name is None:
        return None
    if not path.exists() and path.suffix not in (*DATA_FILES, *TABLES):
        try:
            validate_repo_id(name.partition(":")[0])
        except HFValidationError as error:
            raise UsageError(f"there is no file or folder {name}, and no set on the Hub can be called so.") from error
        return name
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in DATA_FILES)
        if is_data_folder(path):
            return str(path)
        if len(files) != 1:
            raise UsageError(f"{path} holds {len(files)} files of conversations (.json, .jsonl): name one of them.")
        return str(files[0])
    if not path.is_file():
        raise UsageError(f"there is no file {path}.")
    if path.suffix not in (*DATA_FILES, *TABLES):
        raise UsageError(f"{path} is not a file of conversations ({', '.join((*DATA_FILES, *TABLES))}).")
    return str(path)


def quantization_config(options: argparse.Namespace, live_page: str | None = None, **settings: Any) -> QAIGConfig:
    """Returns the configuration that the arguments describe.

    Args:
        options: of `plan` or `quantize`.
        live_page: page that shows how far the run is.
        settings: what only one of the two has.

    Raises:
        UsageError: a value is out of its range.
    """
    try:
        return QAIGConfig(
            group_size=options.group_size,
            sym=options.sym,
            recipe=options.recipe,
            dataset=data_source(options.dataset),
            num_samples=options.num_samples,
            seed=options.seed,
            calibration=CalibrationConfig(
                max_length=options.max_length,
                max_pixels=options.max_pixels,
                token=options.token,
                trust_remote_code=options.trust_remote_code,
                device=options.device,
                work_dir=options.work_dir,
                live_page=live_page,
            ),
            **settings,
        )
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def bit_budget(options: argparse.Namespace, limit: float | str | None) -> BitBudget:
    """Returns the budget that the arguments describe.

    Args:
        options: of `plan` or `quantize`.
        limit: stored bits per weight, or a size; None for the size of the default, from the `candidates` given.

    Raises:
        UsageError: a value is out of its range.
    """
    uniform = DEFAULT_BUDGET.uniform if limit is None else None
    if uniform is not None and not min(options.candidates) < uniform < max(options.candidates):
        raise UsageError(
            f"--candidates {' '.join(map(str, options.candidates))}: without --budget the size is that of {uniform} "
            f"bits for all. Give widths below and above {uniform}, or --budget."
        )
    if uniform is not None and uniform not in options.candidates:
        raise UsageError(f"--candidates: without --budget, {uniform} must be one of them. Add it, or give --budget.")
    try:
        return BitBudget(
            bits=None if isinstance(limit, str) else limit,
            size=limit if isinstance(limit, str) else None,
            candidates=options.candidates or CANDIDATES,
            cost=options.cost or DEFAULT_COST,
            fuse=options.fuse or limit is None,
            uniform=uniform,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
