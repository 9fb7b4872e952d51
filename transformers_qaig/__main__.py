"""`python -m transformers_qaig COMMAND`."""

import argparse
from collections.abc import Sequence

from .cli import plan


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m transformers_qaig")
    commands = parser.add_subparsers(dest="command", required=True)
    plan.register(commands)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
