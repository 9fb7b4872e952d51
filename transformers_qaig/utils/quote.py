"""Shortens a value that a user or a file gave, to be shown in an error."""

from __future__ import annotations

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxset = 4, 8, 8, 8, 8
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 200


def quote(value: object) -> str:
    """Returns `repr(value)`, with the middle of long parts and deeply nested parts left out."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return f"a {type(value).__name__} that is too long to show"
