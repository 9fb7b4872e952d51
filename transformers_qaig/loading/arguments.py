"""What the caller gave `from_pretrained` and Transformers passes on to no quantizer."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import PreTrainedModel

_FROM_PRETRAINED = inspect.unwrap(PreTrainedModel.from_pretrained.__func__).__code__  # type: ignore[attr-defined]


def loading_arguments() -> dict[str, Any]:
    """
    The local variables of the `from_pretrained` that is running, by name; empty if none is.

    `max_memory` is shown to a quantizer only if Transformers infers the device map, from sizes in full precision, and
    `offload_folder` never. To look at the caller is less than to replace parts of Transformers. A name that a later
    Transformers does not have is missing here, and a test says so.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not _FROM_PRETRAINED:
        frame = frame.f_back
    return dict(frame.f_locals) if frame is not None else {}
