"""Where a model goes once it is packed: it is calibrated on the CPU, whatever `device_map` says."""

from __future__ import annotations

import tempfile
from typing import Any

from transformers import PreTrainedModel

from .config import QAIGConfig


def place(model: PreTrainedModel, device_map: Any, config: QAIGConfig) -> None:
    """
    Put a packed model where its `device_map` wants it: by the packed sizes, which the loader could not know.

    Args:
        model: on the CPU.
        device_map: as `from_pretrained` takes it; None leaves the model where it is.
        config: its `max_memory` and `offload_folder` count.
    """
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    if device_map is None:
        return
    if isinstance(device_map, str) and device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        whole = list(model._no_split_modules or ())
        memory = config.max_memory
        if device_map != "sequential":
            memory = get_balanced_memory(
                model, memory, no_split_module_classes=whole, low_zero=device_map == "balanced_low_0"
            )
        device_map = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=whole)
    elif not isinstance(device_map, dict):
        device_map = {"": device_map}
    devices = set(map(str, device_map.values()))
    if len(devices) == 1 and devices != {"disk"}:
        model.to(next(iter(device_map.values())))
    else:
        dispatch_model(
            model,
            device_map,
            offload_dir=config.offload_folder or tempfile.mkdtemp(prefix="qaig-offload-"),
            offload_buffers=True,
            skip_keys=model._skip_keys_device_placement,
        )
