"""The command line, `transformers-qaig`: reads the arguments, then imports what the command needs and runs it.

Each command has a module here. They lie beside the package, because importing that imports torch and Transformers.
It takes seconds, which `--help` and a misspelt option should not cost.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib import import_module

from . import env, evaluate, export, plan, quantize, report

COMMANDS = {
    "env": env.add,
    "plan": plan.add,
    "quantize": quantize.add,
    "evaluate": evaluate.add,
    "report": report.add,
    "export": export.add,
}
"""Command → what adds its arguments."""
EXAMPLES = """examples:
  transformers-qaig quantize Qwen/Qwen2.5-VL-7B-Instruct out/w3 --bits 3
  transformers-qaig evaluate out/w3 --dataset chats.jsonl --reference Qwen/Qwen2.5-VL-7B-Instruct
  transformers-qaig env"""
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
    return run(parse(arguments))


def run(options: argparse.Namespace) -> int:
    """Runs the command that `options` name, and returns the exit status: 0, or 1 if it failed."""
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
        print(_printable(traceback.format_exc()), end="", file=sys.stderr)
    is_foreseen = isinstance(error, (ValueError, OSError, ImportError))
    text = str(error) if is_foreseen else f"{type(error).__name__}: {error}"
    hint = "" if is_foreseen or options.traceback else "\nAdd --traceback to see where."
    print(f"{options.parser.prog}: error: {_printable(text)}{hint}", file=sys.stderr)
    return getattr(error, "exit_code", 1)


def _printable(text: str) -> str:
    """Escapes control characters, which a message may quote from a file."""
    try:
        from transformers_qaig.utils.printable import printable
    except Exception:  # the package itself cannot be imported, and that is what the message says
        return text
    return printable(text)


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
    check(options)
    return options


def check(options: argparse.Namespace) -> None:
    """Tells what argparse cannot: arguments that need others.

    Raises:
        SystemExit: an argument is missing, or has no effect (2).
    """
    command: argparse.ArgumentParser = options.parser
    if options.command == "quantize" and options.out is None and not options.dry_run:
        command.error("the following arguments are required: OUT")
    if options.command != "quantize" or options.budget is not None:
        return
    beside = "--bits" if options.bits is not None else "--plan" if options.plan is not None else ""
    if beside and options.candidates:
        command.error(f"argument --candidates: it has no effect beside {beside}: leave one of them out")
    for name in ("cost", "fuse"):
        if getattr(options, name) and not options.candidates:
            command.error(f"argument --{name}: it has no effect without --budget or --candidates: give one, too")


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
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_commands(root)
    return root


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds all commands to a parser: to that of `transformers-qaig`, or of another program."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS.values():
        add(commands)
