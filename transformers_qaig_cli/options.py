"""Options that several commands share, and how a command is added to the parser."""

from __future__ import annotations

import argparse
import json
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Group: TypeAlias = argparse._ArgumentGroup


def add_command(
    commands: Commands, name: str, positionals: str, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """Adds a command, with `--traceback`, and returns its parser."""
    added = commands.add_parser(
        name,
        usage=f"%(prog)s {positionals} [options]".replace("  ", " "),
        help=summary,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    added.add_argument("--traceback", action="store_true", help="show where an error was raised")
    added.set_defaults(parser=added)
    return added


def add_scheme(group: Group) -> None:
    """Adds options for how a weight is stored, and the recipe."""
    group.add_argument("--group-size", type=int, metavar="N", help="input channels that share a scale (default: 128)")
    group.add_argument("--sym", action="store_true", help="symmetric grids, without zero points")
    recipes = "default, best, fast, rtn, gptq, awq, ..., and changes: best,steps=20; see docs/guides/recipes.md"
    group.add_argument("--recipe", type=recipe, default="default", metavar="NAME", help=recipes)


def add_budget(command: argparse.ArgumentParser, without_budget: str = "") -> None:
    """Adds options for how widths are chosen.

    Args:
        command: which gets them.
        without_budget: what `--candidates` alone do.
    """
    group = command.add_argument_group("widths under a budget")
    widths = f"widths (default: 2 3 4 8){without_budget}"
    group.add_argument("--candidates", type=int, nargs="+", metavar="BITS", help=widths)
    group.add_argument(
        "--cost", metavar="NAME", help="predicts loss (default: fisher_rtn); see docs/guides/mixed-bits.md"
    )
    group.add_argument("--fuse", action="store_true", help="one width for q, k and v, and one for gate and up")


def recipe(text: str) -> str | dict[str, object]:
    """Returns a recipe's name, or the mapping that `"best,steps=20"` stands for.

    Raises:
        argparse.ArgumentTypeError: a change is no `ATTRIBUTE=VALUE`, or an attribute is changed twice.
    """
    first, *changes = text.split(",")
    if not changes and "=" not in first:
        return first
    found: dict[str, object] = {}
    for part in [first if "=" in first or not first else f"name={first}", *changes]:
        name, sign, value = part.partition("=")
        if not (name and sign and value):
            raise argparse.ArgumentTypeError(f"{part!r} is no change of a recipe: write NAME,ATTRIBUTE=VALUE,...")
        if name in found:
            raise argparse.ArgumentTypeError(f"{name!r} is there twice in {text!r}: give it once.")
        found[name] = _value(value)
    return found


def _value(text: str) -> object:
    """Numbers, `true` and `false`, and `True` and `False` are what they say; anything else is a word."""
    try:
        return json.loads(text.lower())
    except (ValueError, RecursionError):
        return text


def budget(text: str) -> float | str:
    """A number is stored bits per weight, anything else a size or a ratio."""
    try:
        return float(text)
    except ValueError:
        return text


def add_data(command: argparse.ArgumentParser) -> None:
    """Adds options for calibration data."""
    group = command.add_argument_group("calibration")
    group.add_argument(
        "--dataset", metavar="DATA", help=".json or .jsonl file, folder with one, or Hub id (default: the bundled set)"
    )
    group.add_argument("--num-samples", type=int, default=128, metavar="N", help="conversations (default: 128)")
    group.add_argument(
        "--max-length", type=int, metavar="N", help="tokens of a conversation (default: what the model can take)"
    )
    group.add_argument("--max-pixels", type=int, metavar="N", help="pixels of an image or frame (default: any number)")
    group.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    group.add_argument("--device", help="where to calibrate (default: the first accelerator, else the CPU)")
    group.add_argument("--work-dir", metavar="DIR", help="keeps finished blocks: an interrupted run resumes there")


def add_loading(command: argparse.ArgumentParser) -> None:
    """Adds options for access to the Hub, and messages."""
    group = command.add_argument_group("loading and messages")
    group.add_argument("--revision", help="branch, tag or commit of MODEL on the Hub")
    group.add_argument("--token", help="for gated or private repositories (default: the one you are logged in with)")
    group.add_argument("--trust-remote-code", action="store_true", help="run model code from the repository")
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="no progress bars, no warnings")
    loudness.add_argument("--verbose", action="store_true", help="also what Transformers logs as information")


def add_dry_run(command: argparse.ArgumentParser) -> None:
    """Adds the option to estimate and stop."""
    command.add_argument(
        "--dry-run", action="store_true",
        help="print memory, disk, time and size, estimated from MODEL's config, and stop; no weights are downloaded",
    )  # fmt: skip
