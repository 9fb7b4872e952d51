"""Makes loggers and progress bars that follow Transformers' own switches."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from transformers.utils.logging import get_logger as transformers_logger
from transformers.utils.logging import tqdm as transformers_tqdm

from .printable import printable

__all__ = ["ROOT", "ProgressBar", "get_logger", "quiet", "tqdm"]

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
    logger.addFilter(_make_printable)  # a second time does nothing
    return logger


def _make_printable(record: logging.LogRecord) -> bool:
    """Escapes control characters of a message, which may quote a file."""
    text = record.getMessage()
    if (shown := printable(text)) != text:
        record.msg, record.args = shown, ()
    return True


_quiet = False


def tqdm(*args: Any, disable: bool = False, **kwargs: Any) -> Any:
    """Makes Transformers' progress bar, which its own switch turns off; one that shows nothing within [`quiet`]."""
    return transformers_tqdm(*args, disable=disable or _quiet, **kwargs)


@contextmanager
def quiet(on: bool) -> Iterator[None]:
    """Shows neither bars nor warnings of this package within the context, if `on`: another process shows them."""
    global _quiet
    root, before = logging.getLogger(ROOT), (_quiet, logging.getLogger(ROOT).level)
    if on:
        _quiet = True
        root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _quiet = before[0]
        root.setLevel(before[1])


class ProgressBar(Protocol):
    """The result of `tqdm(...)`, or its stand-in after `transformers.logging.disable_progress_bar()`."""

    def update(self, n: float = 1) -> object:
        """Advances the bar by `n` steps."""
        ...
