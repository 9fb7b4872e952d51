"""The command line, `transformers-qaig`: reads the arguments, then imports what the command needs and runs it.

This module lies beside the package, because importing the package imports torch and Transformers. That takes seconds,
which `--help` and a misspelt option should not cost.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
ELSEWHERE = {"--ignore": "--exclude", "--modules-to-not-convert": "--exclude", "--wbits": "--bits"}
"""Options of other libraries' commands, each with ours."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: without the program's name; by default those of the process.

    Returns:
        The exit status: 0, 1 if the command failed, or 2 if an argument is wrong.

    Raises:
        SystemExit: argparse refused the arguments (2), or `--help` was asked for (0).
    """
    options = parse(arguments)
    try:
        import_module(f"transformers_qaig.cli.{options.command}").run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        work_dir = getattr(options, "work_dir", None)
        resume = f" The same command resumes from {work_dir}." if work_dir else ""
        print(f"\nInterrupted.{resume}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        return _failed(error, options)
    return 0


def _failed(error: Exception, options: argparse.Namespace) -> int:
    """Prints the error and returns the exit status."""
    if options.traceback:
        traceback.print_exc()
    is_foreseen = isinstance(error, (ValueError, OSError, ImportError))
    text = str(error) if is_foreseen else f"{type(error).__name__}: {error}"
    hint = "" if is_foreseen or options.traceback else "\nAdd --traceback to see where."
    print(f"transformers-qaig {options.command}: error: {text}{hint}", file=sys.stderr)
    return getattr(error, "exit_code", 1)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the arguments. What is wrong with them is told with the usage of their command.

    Args:
        arguments: without the program's name; by default those of the process.

    Raises:
        SystemExit: argparse refused the arguments (2), or `--help` was asked for (0).
    """
    root, given = parser(), list(sys.argv[1:] if arguments is None else arguments)
    if given and not given[0].startswith("-") and given[0] not in COMMANDS:
        root.error(f"there is no command {given[0]!r}; known are {', '.join(COMMANDS)}{_nearest(given[0], COMMANDS)}")
    options, unknown = root.parse_known_args(given)
    command: argparse.ArgumentParser = options.parser
    if unknown:
        known = list(command._option_string_actions)
        known += [name for name, ours in ELSEWHERE.items() if ours in known]
        command.error(f"unrecognized arguments: {' '.join(unknown)}{_nearest(unknown[0].partition('=')[0], known)}")
    if options.command == "quantize" and options.budget is None:
        for name in ("candidates", "cost", "fuse"):
            if getattr(options, name):
                command.error(f"argument --{name}: it has no effect without --budget: give both, or leave it out")
    return options


def _nearest(name: str, known: Iterable[str]) -> str:
    """Returns the end of an error: what was meant, if something of that name or like it is known."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {ELSEWHERE.get(near[0], near[0])}?" if near else ""


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    root = argparse.ArgumentParser(
        prog="transformers-qaig",
        allow_abbrev=False,
        description="Quantize vision-language models to 2-8 bits. Each command has a --help with examples.",
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS.values():
        add(commands)
    return root


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add(
    commands: Commands, name: str, positionals: str, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    added = commands.add_parser(
        name,
        usage=f"transformers-qaig {name} {positionals} [options]".replace("  ", " "),
        help=summary,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    added.add_argument("--traceback", action="store_true", help="show where an error was raised")
    added.set_defaults(parser=added)
    return added


def _add_env(commands: Commands) -> None:
    _add(
        commands,
        "env",
        "",
        "what this installation runs, and why not faster",
        "Prints versions, processor, GPUs, and which kernel runs each operator. Paste it into a bug report.",
        "  transformers-qaig env",
    )


def _add_quantize(commands: Commands) -> None:
    command = _add(
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
    command.add_argument("out", metavar="OUT", type=Path, help="folder to save in; must be new or empty")
    command.add_argument("--overwrite", action="store_true", help="replace a model that OUT holds")
    command.add_argument("--push-to-hub", metavar="REPO_ID", help="also upload the saved model")
    command.add_argument("--private", action="store_true", help="with --push-to-hub: into a private repository")
    weights = command.add_argument_group("weights")
    width = weights.add_mutually_exclusive_group()
    width.add_argument("--bits", type=_bits, metavar="BITS", help="bits per weight, 2 to 8 (default: 4)")
    width.add_argument(
        "--budget", type=_budget, help="stored bits per packed weight (3.2) or size of the saved model (3.5GiB)"
    )
    width.add_argument(
        "--plan", metavar="FILE", help="what `transformers-qaig plan` wrote, or a quantized model's folder"
    )
    _add_scheme(weights)
    weights.add_argument("--vision-bits", type=int, metavar="BITS", help="bits of vision tower and projector")
    weights.add_argument("--lm-head-bits", type=int, metavar="BITS", help="bits of the output head")
    weights.add_argument("--embedding-bits", type=int, metavar="BITS", help="bits of the input embeddings")
    weights.add_argument("--activation-bits", type=int, choices=(8, 16), default=16, help="8: round inputs as well")
    weights.add_argument("--exclude", nargs="+", metavar="NAME", help="modules that stay in full precision")
    _add_budget(command)
    _add_data(command)
    _add_loading(command)


def _add_plan(commands: Commands) -> None:
    command = _add(
        commands,
        "plan",
        "MODEL",
        "predicted loss against size, before quantizing",
        "Measures what each width of each layer costs, and prints the best plan for a range of budgets.\n"
        "Quantizes nothing.",
        "  transformers-qaig plan Qwen/Qwen2.5-VL-7B-Instruct --budgets 2.5:4.5 --plot front.png\n"
        "  transformers-qaig plan path/to/model --output plan.json --pick 3.2\n"
        "  transformers-qaig quantize path/to/model out/mixed --plan plan.json",
    )
    command.add_argument("model", metavar="MODEL", help="folder or Hub id of an unquantized model")
    command.add_argument(
        "--budgets", type=_span, default=(2.5, 4.5), metavar="LOW:HIGH",
        help="stored bits per packed weight (default: 2.5:4.5)",
    )  # fmt: skip
    command.add_argument("--points", type=int, default=17, metavar="N", help="budgets to try there (default: 17)")
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw the front to a picture; needs matplotlib")
    command.add_argument("--output", type=Path, metavar="FILE", help="write the plan at --pick or the knee, as JSON")
    command.add_argument("--pick", type=float, metavar="BITS", help="budget of the plan that --output writes")
    _add_scheme(command.add_argument_group("weights"))
    _add_budget(command)
    _add_data(command)
    _add_loading(command)


def _add_evaluate(commands: Commands) -> None:
    command = _add(
        commands,
        "evaluate",
        "MODEL DATA",
        "how many answers survive, on conversations of yours",
        "Reads every answer of DATA with MODEL and counts those that it would give itself.\n"
        "With --reference, also compares MODEL's predictions with those of the full-precision model.",
        "  transformers-qaig evaluate out/w3 chats.jsonl --reference Qwen/Qwen2.5-VL-7B-Instruct\n"
        "  transformers-qaig evaluate out/w3 chats.jsonl --json > figures.json",
    )
    command.add_argument("model", metavar="MODEL", help="folder or Hub id of a model, quantized or not")
    command.add_argument("data", metavar="DATA", help=".json or .jsonl file with answers, folder with one, or Hub id")
    command.add_argument("--reference", metavar="FULL", help="folder or Hub id of the model to compare with")
    command.add_argument("--num-samples", type=int, default=128, metavar="N", help="conversations (default: 128)")
    command.add_argument("--seed", type=int, default=0, help="seed of their choice (default: 0)")
    command.add_argument("--batch-size", type=int, default=8, metavar="N", help="questions at once (default: 8)")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument("--device", help="where to compute (default: the first accelerator, else the CPU)")
    _add_loading(command)


COMMANDS = {"env": _add_env, "plan": _add_plan, "quantize": _add_quantize, "evaluate": _add_evaluate}
"""Command → what adds its arguments."""
Group = argparse._ArgumentGroup


def _add_scheme(group: Group) -> None:
    group.add_argument("--group-size", type=int, metavar="N", help="input channels that share a scale (default: 128)")
    group.add_argument("--sym", action="store_true", help="symmetric grids, without zero points")
    recipes = "default, best, fast, rtn, gptq, awq, ...; see docs/guides/recipes.md"
    group.add_argument("--recipe", default="default", metavar="NAME", help=recipes)


def _add_budget(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("widths under a budget")
    group.add_argument("--candidates", type=int, nargs="+", metavar="BITS", help="widths (default: 2 3 4 8)")
    group.add_argument("--cost", metavar="NAME", help="predicts loss (default: fisher); see docs/guides/mixed-bits.md")
    group.add_argument("--fuse", action="store_true", help="one width for q, k and v, and one for gate and up")


def _add_data(command: argparse.ArgumentParser) -> None:
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


def _add_loading(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("loading and messages")
    group.add_argument("--revision", help="branch, tag or commit of MODEL on the Hub")
    group.add_argument("--token", help="for gated or private repositories (default: the one you are logged in with)")
    group.add_argument("--trust-remote-code", action="store_true", help="run model code from the repository")
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="no progress bars, no warnings")
    loudness.add_argument("--verbose", action="store_true", help="also what Transformers logs as information")


def _bits(text: str) -> int:
    """A whole number; a fraction is an average, which a budget gives."""
    try:
        return int(text)
    except ValueError:
        is_average = re.fullmatch(r"\d*\.\d+", text)
        hint = f"; for {text} bits on average write --budget {text}" if is_average else ""
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number{hint}") from None


def _budget(text: str) -> float | str:
    """A number is stored bits per weight, anything else a size."""
    try:
        return float(text)
    except ValueError:
        return text


def _span(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        span = float(low), float(high or low)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW:HIGH, such as 2.5:4.5") from None
    if not 0 < span[0] <= span[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: the lower budget comes first, and both are positive")
    return span


if __name__ == "__main__":
    sys.exit(main())
