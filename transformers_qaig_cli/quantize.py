"""Arguments of `transformers-qaig quantize`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from .options import Commands, add_budget, add_command, add_data, add_dry_run, add_loading, add_scheme, budget


def add(commands: Commands) -> None:
    """Adds the command to the parser."""
    command = add_command(
        commands,
        "quantize",
        "MODEL OUT",
        "quantize a model and save it",
        "Quantizes MODEL, saves weights, processor and model card in OUT, and prints a report.",
        "  transformers-qaig quantize Qwen/Qwen2.5-VL-7B-Instruct out/w3 --bits 3\n"
        "  transformers-qaig quantize Qwen/Qwen2.5-VL-7B-Instruct out/small --budget 3.5GiB --work-dir out/work\n"
        "  transformers-qaig quantize path/to/model out/w4 --bits 4 --dataset chats.jsonl --num-samples 256\n"
        "  transformers-qaig quantize path/to/model out/w3 --plan plan.json --push-to-hub me/model-w3",
    )
    command.add_argument("model", metavar="MODEL", help="folder or Hub id of an unquantized model")
    command.add_argument(
        "out", metavar="OUT", type=Path, nargs="?", help="folder to save in; must be new or empty; not for --dry-run"
    )
    command.add_argument("--overwrite", action="store_true", help="replace a model that OUT holds")
    command.add_argument("--push-to-hub", metavar="REPO_ID", help="also upload the saved model")
    command.add_argument("--private", action="store_true", help="with --push-to-hub: into a private repository")
    add_dry_run(command)
    command.add_argument("--report", action="store_true", help="also save a page about it, with calibration samples")
    command.add_argument("--live", metavar="FILE", help="page that is written again after every block (.html)")
    weights = command.add_argument_group("weights")
    width = weights.add_mutually_exclusive_group()
    default = "default: 3, 4 or 8 for each layer, at the size of 4"
    width.add_argument("--bits", type=_bits, metavar="BITS", help=f"bits per weight, 2 to 8 ({default})")
    width.add_argument(
        "--budget",
        type=budget,
        help="stored bits per packed weight (3.2), size of the saved model (3.5GiB), or ratio to bfloat16 (4x)",
    )
    width.add_argument(
        "--plan", metavar="FILE", help="what `transformers-qaig plan` wrote, or a quantized model's folder"
    )
    add_scheme(weights)
    weights.add_argument("--vision-bits", type=int, metavar="BITS", help="bits of vision tower and projector")
    weights.add_argument("--lm-head-bits", type=int, metavar="BITS", help="bits of the output head")
    weights.add_argument("--embedding-bits", type=int, metavar="BITS", help="bits of the input embeddings")
    weights.add_argument("--activation-bits", type=int, choices=(8, 16), default=16, help="8: round inputs as well")
    weights.add_argument("--exclude", nargs="+", metavar="NAME", help="modules that stay in full precision")
    add_budget(command, "; without --budget: at the size of 4 bits for all")
    add_data(command)
    add_loading(command)


def _bits(text: str) -> int:
    """A whole number; a fraction is an average, which a budget gives."""
    try:
        return int(text)
    except ValueError:
        is_average = re.fullmatch(r"\d*\.\d+", text)
        hint = f"; for {text} bits on average write --budget {text}" if is_average else ""
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number{hint}") from None
