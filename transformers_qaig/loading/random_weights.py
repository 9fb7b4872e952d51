"""Finds weights that no file holds, to which Transformers gave random values while it loaded the model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from .arguments import loading_arguments


def check_no_random_weights(model: nn.Module, names: Iterable[str]) -> None:
    """Raises `ValueError` if weights that are to be packed were in no file, or in another shape.

    Transformers only prints them. A calibration of random values would take its time, and end in a useless model.
    Transformers 5.17 does not even look at the shapes when a model is to be quantized, and loads what the file has.

    Args:
        model: loaded.
        names: of the parameters, with or without `.weight`.
    """
    info = loading_arguments().get("loading_info")
    random = set() if info is None else {name.removesuffix(".weight") for name in info.missing_and_mismatched()}
    lost = sorted(name for name in names if name.removesuffix(".weight") in random or _is_misshapen(model, name))
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ValueError(
            f"{lost[0]}{more} would be packed, but no file of the model holds them in this shape, so they are random. "
            "Download the model again, or load it with the class and config that saved it."
        )


def _is_misshapen(model: nn.Module, path: str) -> bool:
    try:
        module = model.get_submodule(path)
    except AttributeError:  # a parameter
        return False
    return isinstance(module, nn.Linear) and module.weight.shape != (module.out_features, module.in_features)
