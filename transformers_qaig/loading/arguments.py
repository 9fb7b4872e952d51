"""Reads arguments of `from_pretrained` that Transformers passes to no quantizer."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import PreTrainedModel

_FROM_PRETRAINED = inspect.unwrap(PreTrainedModel.from_pretrained.__func__).__code__  # type: ignore[attr-defined]


def loading_arguments() -> dict[str, Any]:
    """Returns the local variables of the running `from_pretrained`, by name; empty if none is running.

    Transformers shows `max_memory` to a quantizer only if it infers the device map, from sizes in full precision. It
    never shows `offload_folder`. Looking at the caller is less intrusive than replacing parts of Transformers. A name
    that a later Transformers lacks is missing here, and a test then fails.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not _FROM_PRETRAINED:
        frame = frame.f_back
    return dict(frame.f_locals) if frame is not None else {}
