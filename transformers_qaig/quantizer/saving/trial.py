"""Tries on the meta device what `save_pretrained` will write, so that no calibration is lost to a file that fails."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    rename_source_key,
    revert_weight_conversion,
)

from ...config import QAIGConfig
from ...loading.arguments import loading_arguments
from ...loading.conversions import loading_conversions, sparing_packed
from ...loading.text_config import mark_text_config
from ...nn.experts_layout import split_path
from ...utils.temporary import raise_if_full, temporary_folder


def try_saving(
    model: PreTrainedModel,
    skeleton: PreTrainedModel,
    tensors: Mapping[str, Tensor],
    settings: QAIGConfig,
    files: Sequence[str] | None,
) -> None:
    """Does what `save_pretrained` does without writing tensors, and checks that the result can be loaded again.

    Args:
        model: before it is packed.
        skeleton: the packed model, on meta; its config and generation config may change.
        tensors: what is to be saved, by name.
        settings: that are to be saved, with a plan of the packed modules.
        files: those the model is loaded from.

    Raises:
        ValueError: saving would fail, or another model would come back, or there is no folder for temporary files; it
            says what to do.
    """
    _try_configs(skeleton, settings)
    _try_names(model, skeleton, tensors, settings.plan or {}, files)


def _try_configs(skeleton: PreTrainedModel, settings: QAIGConfig) -> None:
    skeleton.config.quantization_config = settings
    mark_text_config(skeleton.config)
    skeleton.config.dtype = str(skeleton.dtype).removeprefix("torch.")
    _take_generation_config(skeleton)
    with tempfile.TemporaryDirectory(prefix="transformers-qaig-", dir=temporary_folder()) as folder:
        try:
            skeleton.config.save_pretrained(folder)
        except Exception as error:  # Transformers' and every model's own checks
            raise_if_full(error, folder)
            raise ValueError(
                f"save_pretrained would fail after the calibration: config.json cannot be written ({error}). Mend the "
                "model's config first, or pass `config=` to from_pretrained."
            ) from error
        if skeleton.can_generate():
            try:
                skeleton.generation_config.save_pretrained(folder)
            except Exception as error:
                raise_if_full(error, folder)
                raise ValueError(
                    "save_pretrained would fail after the calibration: Transformers does not save this generation "
                    f"config ({error}). Mend generation_config.json, or pass `generation_config=` to from_pretrained."
                ) from error
        saved = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    if QAIGConfig.from_dict(saved["quantization_config"]) != settings:
        raise ValueError(f"These settings come back from config.json as others: {settings.to_dict()}.")


def _take_generation_config(skeleton: PreTrainedModel) -> None:
    """Sets the generation config that from_pretrained will give the model after the weights are read."""
    given = loading_arguments()
    adjust: Any = getattr(skeleton, "adjust_generation_fn", None)
    if not skeleton.can_generate() or adjust is None:
        return
    values = {**given, **given.get("kwargs", {}), **given.get("download_kwargs", {})}
    values |= {"force_download": False, "trust_remote_code": False}
    parameters = inspect.signature(adjust).parameters.values()
    names = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    if all(name in values for name in names):
        adjust(**{name: values[name] for name in names}, **{k: v for k, v in given["kwargs"].items() if k not in names})


def _try_names(
    model: PreTrainedModel,
    skeleton: PreTrainedModel,
    tensors: Mapping[str, Tensor],
    plan: Collection[str],
    files: Sequence[str] | None,
) -> None:
    full = {name: torch.empty_like(tensor, device="meta") for name, tensor in model.state_dict().items()}
    used = _used_conversions(model, files)
    saved = _saved_names(used, tensors)
    own = skeleton.state_dict()
    loading = loading_conversions(skeleton)
    owners = {path if (parts := split_path(path)) is None else parts[0] for path in plan} | set(plan)
    for name, (key, taken) in sorted(saved.items(), key=lambda item: item[1][0]):
        again, taken_again = _renamed(key, loading, skeleton.base_model_prefix, own)
        again = key if again not in own and key in own else again  # as the loader does
        taken = taken or taken_again
        of_packing = name not in full or full[name].shape != tensors[name].shape  # a bias may be joined with others
        lost = taken is not None or (name in own and again != name)  # a guard is recognised by its ending
        if of_packing and lost and name.rpartition(".")[0] in owners:
            raise ValueError(
                f"{name} would not come back from a saved file: Transformers' conversion of {type(skeleton).__name__} "
                f"weights {f'({taken}) takes it for its own' if taken else f'makes it {again}'}. Leave its module out "
                "with `modules_to_not_convert`."
            )
    if not any(isinstance(entry, WeightConverter) for entry in used):
        return
    before, after = _shapes_saved(model, used, full), _shapes_saved(skeleton, used, dict(tensors))
    for name, shape in after.items():
        if shape.numel() and before.get(name, shape) != shape:  # a guard has none
            raise ValueError(
                f"save_pretrained would write half of {name}, which holds weights of which only some are packed "
                f"({list(shape)} of {list(before[name])}). Pack all of them, or leave all out with "
                "`modules_to_not_convert`."
            )


def saved_names(model: PreTrainedModel, names: Iterable[str], files: Sequence[str] | None) -> dict[str, str]:
    """Returns name → what Transformers' conversions make of it in a file.

    Args:
        model: before it is packed.
        names: of tensors to be saved.
        files: those the model is loaded from.
    """
    return {name: key for name, (key, _) in _saved_names(_used_conversions(model, files), names).items()}


def _saved_names(used: Sequence[WeightTransform], names: Iterable[str]) -> dict[str, tuple[str, str | None]]:
    back = [entry.reverse_transform() for entry in used[::-1]]
    return {name: _renamed(name, back) for name in sorted(names)}


def _shapes_saved(
    model: PreTrainedModel, used: list[WeightTransform], tensors: dict[str, Tensor]
) -> dict[str, torch.Size]:
    """Returns the shapes that Transformers would write for the tensors; empty if the meta device cannot do it."""
    before = vars(model).get("_weight_conversions")
    model._weight_conversions = used  # type: ignore[assignment]
    try:
        return {name: tensor.shape for name, tensor in revert_weight_conversion(model, tensors).items()}
    except NotImplementedError:
        return {}
    except Exception as error:  # any of the many conversions
        raise ValueError(
            f"save_pretrained would fail after the calibration: Transformers cannot convert the weights of "
            f"{type(model).__name__} back ({error}). Leave the modules it names out with `modules_to_not_convert`."
        ) from error
    finally:
        if before is None:
            vars(model).pop("_weight_conversions", None)
        else:
            vars(model)["_weight_conversions"] = before


def _used_conversions(model: PreTrainedModel, files: Sequence[str] | None) -> list[WeightTransform]:
    """Returns those of Transformers' conversions that something in the files needs: saving reverts these."""
    names = _names_in(files or ())
    if not names:  # what Transformers assumes of a model that was not loaded
        assumed = sparing_packed(get_model_conversion_mapping(model, add_legacy=False))
        return [entry for entry in assumed if not isinstance(entry, PrefixChange)]
    conversions = loading_conversions(model)
    own = model.state_dict()
    for name in names:
        _renamed(name, conversions, model.base_model_prefix, own)
    return [entry for entry in conversions if entry.was_used()]


def _names_in(files: Iterable[str]) -> list[str]:
    names: list[str] = []
    for file in files:
        try:
            with safe_open(file, "pt") as stored:
                names += stored.keys()
        except (SafetensorError, OSError):
            return []  # of another kind: its names cannot be read without its tensors
    return sorted(names)


def _renamed(
    name: str, conversions: Sequence[WeightTransform], prefix: str | None = None, own: dict[str, Any] | None = None
) -> tuple[str, str | None]:
    """Applies `conversions` to a name, from the model to the file without `own`; returns it and its converter."""
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    return rename_source_key(name, renamings, converters, prefix, own, reverse=own is None)
