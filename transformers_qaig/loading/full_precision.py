"""Weights of a model to be quantized: converted ones go to files while they are read, and all are checked after.

Weights that need no conversion are mapped from the checkpoint's own files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps

from ..utils.finite import buffers_with_nan, is_finite
from ..utils.memory import return_freed_memory
from ..utils.scratch import LEAST, ScratchFiles
from .arguments import loading_arguments
from .shards import DTYPES


class ConvertedWeights(ConversionOps):
    """The last step of loading a weight. One that was cast, joined or split goes to a file.

    Transformers takes it for the step that quantizes a weight. It runs for one weight after the other.

    Args:
        model: on the meta device.
        checkpoint_files: paths of the shards.
        dtype: in which Transformers loads weights.
        scratch: where converted ones go.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        checkpoint_files: Sequence[str],
        dtype: torch.dtype | None,
        scratch: ScratchFiles,
    ):
        self._scratch, self._stored = scratch, _stored_dtypes(checkpoint_files)
        # Transformers casts what a quantizer treats to `dtype`, whatever its dtype in the model.
        self._waiting = {
            name: tensor.shape
            for name, tensor in model.state_dict().items()
            if tensor.dtype == dtype and tensor.numel() * tensor.element_size() >= LEAST
        }

    def __contains__(self, name: str) -> bool:
        """Whether this step must run for a weight. Once it ran, Transformers checks the shape as it always does.

        For a weight for which it never ran, [`check_shapes`] does so.
        """
        return name in self._waiting

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Returns what it gets, in files: name → tensor, or a list of one.

        Args:
            input_dict: the converted weights.
            source_patterns: name of the stored tensor, or patterns of several.
            target_patterns: not used.
            kwargs: not used.
        """
        found = {name: value[0] if isinstance(value, list) else value for name, value in input_dict.items()}
        for name in found:
            self._waiting.pop(name, None)
        kept = {name: self._kept(tensor, source_patterns[0]) for name, tensor in found.items()}
        found.clear()
        input_dict.clear()
        return_freed_memory()
        return kept

    def check_shapes(self, model: PreTrainedModel) -> None:
        """Checks the shapes that Transformers left to this step and then set without it.

        It asks about the first of the weights that one stored tensor becomes, which may be too small to go to a file.

        Raises:
            ValueError: a weight has another shape in the checkpoint than in the model.
        """
        tensors = model.state_dict() if self._waiting else {}
        for name, shape in self._waiting.items():
            if name in tensors and tensors[name].shape != shape:
                raise ValueError(
                    f"{name} has the shape {list(tensors[name].shape)} in the checkpoint and {list(shape)} in the "
                    "model: config.json is of another model."
                )

    def _kept(self, tensor: Tensor, source: str) -> Tensor:
        is_mapped = self._stored.get(source) == tensor.dtype  # a pattern is no tensor's name
        return tensor if is_mapped else self._scratch.store(tensor)

    @property
    def reverse_op(self) -> ConversionOps:
        """Raises: this step is no part of saving."""
        raise NotImplementedError


def check_weights(model: PreTrainedModel, names: Iterable[str], converted: ConvertedWeights) -> None:
    """Checks the weights that were loaded, before they are calibrated for hours: their shapes, origin and values.

    Args:
        model: loaded.
        names: of the parameters that are to be packed, with or without `.weight`.
        converted: the step of loading that some weights went through.

    Raises:
        ValueError: a weight has another shape than the model's, was in no file, or is not finite.
    """
    converted.check_shapes(model)
    check_no_random_weights(model, names)
    check_finite_weights(model)


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


def check_finite_weights(model: nn.Module) -> None:
    """Raises `ValueError` if a parameter holds NaN or Inf, or a saved buffer NaN; the message names them.

    A mask may hold Inf. All weights are read once.
    """
    found = [name for name, parameter in model.named_parameters() if not parameter.is_meta and not is_finite(parameter)]
    found += buffers_with_nan(model)
    if not found:
        return
    names, more = ", ".join(found[:5]), f" and {len(found) - 5} more" if len(found) > 5 else ""
    in_float16 = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    advice = "Load it with dtype=torch.bfloat16 or torch.float32; if they are still there, get" if in_float16 else "Get"
    raise ValueError(
        f"The model cannot be quantized: these weights hold NaN or Inf: {names}{more}. {advice} the checkpoint again."
    )


def _stored_dtypes(files: Sequence[str]) -> dict[str, torch.dtype | None]:
    """Returns the dtype of every tensor in safetensors files, by its name there."""
    dtypes = {}
    for file in files:
        if file.endswith(".safetensors"):
            with safe_open(file, "pt") as stored:
                dtypes.update({key: DTYPES.get(stored.get_slice(key).get_dtype()) for key in stored.keys()})
    return dtypes
