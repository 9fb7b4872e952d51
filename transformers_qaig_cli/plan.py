"""Arguments of `transformers-qaig plan`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from .options import Commands, add_budget, add_command, add_data, add_dry_run, add_loading, add_scheme, budget


def add(commands: Commands) -> None:
    """Adds the command to the parser."""
    command = add_command(
        commands,
        "plan",
        "MODEL",
        "predicted loss against size, before quantizing",
        "Measures what each width of each layer costs, and prints the best plan for a range of budgets.\n"
        "Quantizes nothing.",
        "  transformers-qaig plan Qwen/Qwen2.5-VL-7B-Instruct --budgets 2.5:4.5 --plot front.png\n"
        "  transformers-qaig plan path/to/model --output plan.json --pick 3.2\n"
        "  transformers-qaig plan path/to/model --budgets 3x:5x --output plan.json --pick 4x\n"
        "  transformers-qaig quantize path/to/model out/mixed --plan plan.json\n"
        "  transformers-qaig plan Qwen/Qwen2.5-VL-72B-Instruct --dry-run",
    )
    command.add_argument("model", metavar="MODEL", help="folder or Hub id of an unquantized model")
    command.add_argument(
        "--budgets", type=_span, default=(2.5, 4.5), metavar="LOW:HIGH",
        help="stored bits per packed weight (default: 2.5:4.5), or sizes of the whole file (3GiB:6GiB, 3x:5x)",
    )  # fmt: skip
    command.add_argument("--points", type=int, default=17, metavar="N", help="budgets to try there (default: 17)")
    command.add_argument(
        "--plot", type=Path, metavar="FILE",
        help="draw the front, and what a bit less costs each part and layer: a page (.html) or a picture (matplotlib)",
    )  # fmt: skip
    command.add_argument("--output", type=Path, metavar="FILE", help="write the plan at --pick or the knee, as JSON")
    command.add_argument(
        "--pick", type=budget, metavar="BUDGET", help="budget of the plan that --output writes: bits, or a size"
    )
    add_dry_run(command)
    add_scheme(command.add_argument_group("weights"))
    add_budget(command)
    add_data(command)
    add_loading(command)


def _span(text: str) -> tuple[float, float] | tuple[str, str]:
    low, _, high = text.partition(":")
    first, last = budget(low), budget(high or low)
    if isinstance(first, str) and isinstance(last, str):
        if not all(re.fullmatch(r"\s*[0-9]*\.?[0-9]+\s*([xX]|[kKMGT]i?B?|B)\s*", size) for size in (first, last)):
            raise argparse.ArgumentTypeError(f"{text!r} is not LOW:HIGH, such as 2.5:4.5, 3GiB:6GiB or 3x:5x")
        return first, last
    if isinstance(first, str) or isinstance(last, str):
        raise argparse.ArgumentTypeError(f"{text!r}: both ends are bits, or both are sizes")
    if not 0 < first <= last:
        raise argparse.ArgumentTypeError(f"{text!r}: the lower budget comes first, and both are positive")
    return first, last
