"""`optimum-cli qaig`: the commands of `transformers-qaig`, with the same arguments, inside optimum's command line."""

from __future__ import annotations

import argparse
import sys

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from . import add_commands, check, run


class QAIGCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum has no types
    """Adds `qaig` with its commands below it."""

    COMMAND = CommandInfo(name="qaig", help="Quantize vision-language models to 2-8 bits, evaluate, export.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Adds the commands to optimum's parser."""
        add_commands(parser)

    def run(self) -> None:
        """Runs the command, and exits with its status."""
        check(self.args)
        sys.exit(run(self.args))
