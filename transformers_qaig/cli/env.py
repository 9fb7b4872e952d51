"""Runs `transformers-qaig env`: which kernels this installation uses, and why not faster ones."""

from __future__ import annotations

import argparse

from transformers.utils import logging

from ..kernels.env import collect
from ..utils.printable import say


def run(options: argparse.Namespace) -> None:
    """Prints the report, after compiling the kernels if need be."""
    logging.set_verbosity_info()  # compiling takes a minute, and says so
    say(collect())
