"""torchvision for processors that need it, where torch is built for CPUs only and there is no torchvision for it."""

import sys
from pathlib import Path

import torch

_library: torch.library.Library | None = None


def make_importable() -> None:
    """Makes the CUDA wheel importable, which it is once two of its operators have a schema.

    It stands in a folder of its own (see the Makefile): without the schemas it would break others. A torch for GPUs has
    a torchvision that defines the operators itself and would stumble over others' schemas: nothing happens then.
    """
    global _library
    if torch.version.cuda is not None or torch.version.hip is not None or _library is not None:
        return
    sys.path.append(str(Path(sys.prefix) / "torchvision-cpu"))
    _library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
