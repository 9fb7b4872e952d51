"""Runs `python -m transformers_qaig COMMAND` as `transformers-qaig COMMAND`."""

import sys

from transformers_qaig_cli import main

if __name__ == "__main__":
    sys.exit(main())
