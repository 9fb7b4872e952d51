"""Runs `transformers-qaig quantize MODEL OUT`: quantizes a model, saves it and prints a report."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id
from transformers import AutoModelForImageTextToText

from ..config import QAIGConfig
from ..distributed.joining import number_of_processes
from ..quantizer.saving.processor_and_card import holds_processor
from ..report.files import PAGE, save_report
from ..utils.files import UNFINISHED, require_writable
from ..utils.printable import say
from ..utils.readable import readable_size
from . import dry_run
from .arguments import UsageError, bit_budget, loading, quantization_config, require_unquantized, set_loudness

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def run(options: argparse.Namespace) -> None:
    """Quantizes, saves, prints the report, and uploads if asked to.

    Raises:
        UsageError: an argument is wrong; the model was not loaded yet.
        ValueError, OSError: what loading, calibration or saving raises.
    """
    set_loudness(options)
    refuse_several_processes()
    config = configuration(options)
    if options.dry_run:
        return dry_run.run(options, config)
    with no_empty_folder(options.out):
        check_output(options)
        check_upload(options)
        require_unquantized(options)
        model = AutoModelForImageTextToText.from_pretrained(
            options.model, quantization_config=config, **loading(options)
        )
        with output(options.out) as folder:
            model.save_pretrained(folder)
            if options.report:
                save_report(model, folder / PAGE)
    say(model.qaig_report)
    size = sum(file.stat().st_size for file in options.out.glob("*.safetensors"))
    also = ", the processor and" if holds_processor(options.out) else " and"
    say(f"\nSaved in {options.out}: {readable_size(8 * size)} of weights{also} a model card.")
    if options.push_to_hub:
        model.push_to_hub(options.push_to_hub, private=options.private or None, token=options.token)
        say(f"Uploaded to {options.push_to_hub}.")


def refuse_several_processes() -> None:
    """Raises `UsageError` under a launcher: its processes would write one folder."""
    if number_of_processes() > 1:
        raise UsageError(
            "`quantize` runs in one process. To use several, start a Python script with the launcher: see "
            "'Several processes' in the guide on large models."
        )


def configuration(options: argparse.Namespace) -> QAIGConfig:
    """Returns the configuration that the arguments describe."""
    settings: dict[str, Any] = {"plan": options.plan}
    if options.budget is not None or options.candidates:
        settings["budget"] = bit_budget(options, options.budget)
    elif options.bits is not None:
        settings["bits"] = options.bits
    return quantization_config(
        options,
        vision_bits=options.vision_bits,
        lm_head_bits=options.lm_head_bits,
        embedding_bits=options.embedding_bits,
        activation_bits=options.activation_bits,
        modules_to_not_convert=options.exclude,
        live_page=options.live,
        **settings,
    )


def check_output(options: argparse.Namespace) -> None:
    """Raises `UsageError` unless the model can be saved in OUT."""
    out: Path = options.out
    if out.exists() and not out.is_dir():
        raise UsageError(f"OUT must be a folder, and {out} is a file.")
    if out.is_dir() and any(out.iterdir()):
        if not options.overwrite:
            raise UsageError(f"{out} is not empty. Give a new folder, or --overwrite to replace the model in it.")
        if not (out / "config.json").is_file():
            raise UsageError(f"--overwrite replaces a model, and {out} holds none: it has no config.json.")
        if Path(options.model).is_dir() and out.samefile(options.model):
            raise UsageError(f"OUT is MODEL, {out}: its weights are still being read. Give another folder.")
    work = options.work_dir and Path(options.work_dir).expanduser().resolve()
    if work and out.resolve() in (work / "_").parents:
        raise UsageError("--work-dir must not be OUT or in it, which would not be empty when the run resumes.")
    try:
        require_writable(out, "OUT")
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_upload(options: argparse.Namespace) -> None:
    """Raises `UsageError` if an upload is asked for and there is no login."""
    if options.private and not options.push_to_hub:
        raise UsageError("--private is for --push-to-hub: give both.")
    if not options.push_to_hub:
        return
    try:
        validate_repo_id(options.push_to_hub)
        HfApi(token=options.token).whoami()
    except Exception as error:  # from a bad name to no connection, of many types
        raise UsageError(f"--push-to-hub {options.push_to_hub} would fail: {error}") from error


@contextmanager
def no_empty_folder(out: Path) -> Iterator[None]:
    """Removes, after an error, the empty folders that were made for `out` within the context."""
    made = [folder for folder in (out, *out.parents) if not folder.resolve().exists()]
    try:
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # it is not there, or holds something
                folder.rmdir()
        raise


@contextmanager
def output(out: Path) -> Iterator[Path]:
    """Yields a folder to save in, whose files are in `out` at the end of the context.

    Then `out` holds no weights of an earlier save. After an error `out` is as it was.
    """
    is_new = not any(out.iterdir())
    folder = out if is_new else out / f"{UNFINISHED}{secrets.token_hex(6)}-model"
    folder.mkdir(exist_ok=is_new)
    try:
        yield folder
    except BaseException:
        for file in [*folder.iterdir()]:
            _remove(file)
        raise
    else:
        if not is_new:
            _replace_weights(folder, out)
    finally:
        if not is_new:
            shutil.rmtree(folder, ignore_errors=True)


def _replace_weights(folder: Path, out: Path) -> None:
    """Moves the files of `folder` to `out`, in place of the weights and of what has the same name."""
    for pattern in WEIGHTS:
        for file in out.glob(pattern):
            file.unlink()
    for file in folder.iterdir():
        if (out / file.name).is_dir():
            shutil.rmtree(out / file.name)
        os.replace(file, out / file.name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
