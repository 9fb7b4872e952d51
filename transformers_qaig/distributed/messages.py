"""Converts what processes send each other to bytes: values with tensors, and errors."""

from __future__ import annotations

import io
import pickle
from typing import Any

from torch import Tensor


class _Pickler(pickle.Pickler):
    """Sends tensors from the CPU, without what else their storage holds."""

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        there = obj.detach().cpu()
        is_part = there.untyped_storage().nbytes() > there.nbytes
        return (there.clone() if is_part else there).__reduce_ex__(pickle.HIGHEST_PROTOCOL)


def as_bytes(value: Any) -> bytes:
    """Returns a value as bytes; `pickle.loads` makes it of them, with its tensors on the CPU."""
    text = io.BytesIO()
    _Pickler(text, pickle.HIGHEST_PROTOCOL).dump(value)
    return text.getvalue()


def sent(error: Exception) -> bytes:
    """Returns an error as bytes; one that cannot be pickled becomes a `RuntimeError` with its text."""
    try:
        text = pickle.dumps(error)
        pickle.loads(text)
    except Exception:
        text = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return text


def received(text: bytes) -> Exception:
    """Returns the error that [`sent`] made bytes of."""
    error: Exception = pickle.loads(text)
    return error
