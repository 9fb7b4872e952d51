"""Makes loggers and progress bars that follow Transformers' own switches."""

from __future__ import annotations

import logging
from typing import Protocol

from transformers.utils.logging import get_logger as transformers_logger
from transformers.utils.logging import tqdm

__all__ = ["ROOT", "ProgressBar", "get_logger", "tqdm"]

ROOT = "transformers.qaig"
"""Above all loggers of this package. `logging.getLogger("transformers.qaig").setLevel("ERROR")` reaches only them."""


def get_logger(name: str) -> logging.Logger:
    """Returns the logger of a module of this package.

    It lies below Transformers' own logger and so uses its handler, its format and its level:
    `transformers.logging.set_verbosity_error()` and `TRANSFORMERS_VERBOSITY` hold here too.

    Args:
        name: `__name__`. `transformers_qaig.data.samples` logs as `transformers.qaig.data.samples`.
    """
    logger: logging.Logger = transformers_logger(ROOT + name.removeprefix("transformers_qaig"))  # type: ignore[assignment]
    return logger


class ProgressBar(Protocol):
    """The result of `tqdm(...)`, or its stand-in after `transformers.logging.disable_progress_bar()`."""

    def update(self, n: float = 1) -> object:
        """Advances the bar by `n` steps."""
        ...
