"""Makes text that anybody may have written safe to show: no control character of a file reaches a terminal."""

from __future__ import annotations

import re

# Controls but the line end and the tab, other line ends, marks and overrides of direction, halves of surrogate pairs.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Returns `text` with its escape, such as `\x1b`, in the place of each character that a terminal would obey."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: object) -> None:
    """Prints the text that [`printable`] makes of `text`."""
    print(printable(str(text)))
