"""Checks the files of a quantized checkpoint by their headers, before any weight is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Container, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightConverter

from ..formats.packing import SCALE_DTYPES, packed_shapes
from ..formats.scheme import Plan
from ..nn.experts import QAIGExperts
from ..nn.experts_checks import packed_expert_shapes
from ..nn.experts_layout import expert_path, split_path
from ..plan.experts import EVERY
from ..utils.quote import quote
from .conversions import loading_conversions
from .local_names import is_class_that_saved, lacks_part, loader_naming, merging, packed_paths
from .packed_modules import modules_of
from .shards import DTYPES, StoredTensor, read_headers

SINGLE_FILE = "model.safetensors"
FEW = 100  # weights, which other checks look at in a moment
MOST_SHOWN = 1000  # characters of a problem: a name in a file may be long


def check_number(plan: Collection[str], files: Sequence[str]) -> None:
    """Compares quickly how much a plan packs with what the files hold: a plan that anybody wrote may name millions.

    A few too many are left to the checks that name each of them.

    Args:
        plan: paths of the packed weights.
        files: paths of the checkpoint's shards.

    Raises:
        ValueError: the plan names far more weights than are stored, or all are stored in full precision.
    """
    stored = set(packed_paths(files))
    if files and plan and not stored:
        raise ValueError(
            f"config.json says that {len(plan):,} weights are packed, such as {quote(next(iter(plan)))}, and "
            f"{quote(files[0])} holds none that is: these are weights in full precision. Delete `quantization_config` "
            "from config.json to load them as they are, or save the packed model again with `save_pretrained`."
            + _left_behind(files)
        )
    plan = list(dict.fromkeys(map(_stored_path, plan)))
    if files and len(plan) > 2 * len(stored) + FEW:
        ends = {_end(path) for path in stored}  # classes of models name the parts above differently
        other = next((path for path in plan if _end(path) not in ends), next(iter(plan)))
        raise ValueError(
            f"The plan in config.json packs {len(plan):,} weights, such as {quote(other)}, and the files hold "
            f"{len(stored):,}: the checkpoint is damaged."
        )


def _left_behind(files: Sequence[str]) -> str:
    """Returns what to do where a push in several files left the single file of an earlier push, which is read first."""
    if [Path(file).name for file in files] != [SINGLE_FILE]:
        return ""
    return (
        f"\nDoes the repository hold shards such as model-00001-of-00002.safetensors, too? Then {SINGLE_FILE} is left "
        "from an earlier push, and Transformers reads it first: delete it there."
    )


def _stored_path(path: str) -> str:
    """Returns what a path in a plan is counted as: the experts of a stack are stored together."""
    parts = split_path(path)
    return path if parts is None else expert_path(parts[0], EVERY, parts[2])


def _end(path: str) -> tuple[str, ...]:
    return tuple(path.rsplit(".", 3)[-3:])


def check_headers(model: PreTrainedModel, plan: Plan, files: Sequence[str]) -> dict[str, torch.dtype]:
    """Compares the headers of safetensors files with the tensors that the plan and the model ask for.

    Of the parameters that are not packed only their presence is checked, and only if the model is of the class that was
    saved: another one may bring a head of its own. Packed tensors of a part that it lacks are left alone.

    Args:
        model: on meta, with the plan's packed modules in place.
        plan: from the checkpoint's config.json.
        files: paths of the checkpoint's shards.

    Returns:
        the packed tensors that are stored, by name: their dtypes.

    Raises:
        ValueError: naming the tensors that are missing, unexpected, misshapen or of a wrong type, or a file that
            cannot be read.
    """
    expected, dense = {}, set()
    for path, module in modules_of(model, plan).items():
        if isinstance(module, QAIGExperts):
            shapes = packed_expert_shapes(module)
            dense |= {f"{path}.{name}" for name in module.stack.parameters}
        else:
            dense.add(f"{path}.weight")
            sizes = module.out_features, module.in_features
            shapes = packed_shapes(*sizes, module.bits, module.group_size, module.sym)
        expected.update({f"{path}.{name}": spec for name, spec in shapes.items()})
    names = {name.rpartition(".")[2] for name in expected} | {"weight_zero_point"}
    names |= {name.replace("_scale", "_zero_point") for name in names}

    complete, modules = is_class_that_saved(model), dict(model.named_modules())
    headers, problems = read_headers(files, loader_naming(model), merging(model))
    state_dict = model.state_dict()
    found = set()
    for key, (_, shape, dtype, file) in headers.items():
        if key not in expected:
            own = state_dict.get(key)
            if own is not None and own.is_floating_point() != dtype.startswith(("F", "BF")):
                problems.append(f"{key} has type {dtype} in {file}, and the model's is {own.dtype}")
            if key in dense and shape != (0,):  # an empty one is the guard
                problems.append(f"{key} is in {file} in full precision, and its packed tensors are stored, too")
            owner, _, name = key.rpartition(".")
            if name in names and (complete or not lacks_part(modules, owner)):
                problems.append(f"{key} is in {file} but not in the plan of config.json")
            continue
        found.add(key)
        wanted_shape, wanted_dtype = expected[key]
        allowed = SCALE_DTYPES if wanted_dtype is None else (wanted_dtype,)
        if shape != wanted_shape:
            problems.append(f"{key} has shape {list(shape)} in {file}, expected {list(wanted_shape)}")
        if DTYPES.get(dtype) not in allowed:
            problems.append(f"{key} has type {dtype} in {file}, expected {' or '.join(map(str, allowed))}")
    tied = model.all_tied_weights_keys
    problems += [f"{key} is stored twice: it is tied to {tied[key]}" for key in found if tied.get(key) in found]
    problems += _odd_halves({key: headers[key] for key in found if key.endswith("_scale")}, "scales")
    problems += _single_half({key: headers[key] for key in headers.keys() & state_dict.keys() - found})
    problems += [f"{key} is missing" for key in expected if key not in found and tied.get(key) not in found]
    if complete:
        problems += [f"{key} is missing" for key in _unpacked_missing(model, expected, headers)]
    if problems:
        shown = "\n".join(f"  {problem[:MOST_SHOWN]}" for problem in problems[:8])
        more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        hint = _left_behind(files)
        raise ValueError(f"The quantized checkpoint is damaged or does not match its config.json:\n{shown}{more}{hint}")
    return {key: DTYPES[headers[key].dtype] for key in found}


def _unpacked_missing(model: PreTrainedModel, packed: Container[str], stored: Container[str]) -> list[str]:
    """Lists parameters that are neither packed nor stored, nor tied to a stored one, nor expected to be missing.

    What the loader splits from a fused tensor counts as stored: its own name is in no file.
    """
    conversions = loading_conversions(model)
    split = [
        part
        for entry in conversions
        if isinstance(entry, WeightConverter) and len(entry.target_patterns) > 1
        for part in entry.target_patterns
    ]
    tied = {one: other for pair in model.all_tied_weights_keys.items() for one, other in (pair, pair[::-1])}
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    return [
        key
        for key, _ in model.named_parameters(remove_duplicate=False)
        if key not in packed
        and key not in stored
        and key not in (model._keys_to_ignore_on_save or ())
        and tied.get(key) not in stored
        and not any(pattern.search(key) for pattern in ignored)
        and not any(part in key for part in split)
    ]


def _single_half(unpacked: Mapping[str, StoredTensor]) -> list[str]:
    """Lists what `_odd_halves` lists, if only one unpacked tensor is odd: a part of a model may have its own type."""
    problems = _odd_halves(unpacked, "tensors")
    return problems if len(problems) == 1 < len(unpacked) - 1 else []


def _odd_halves(tensors: Mapping[str, StoredTensor], what: str) -> list[str]:
    """Lists tensors in another 16-bit type than most: a model is saved in one, and others would be read wrongly."""
    halves = {key: tensor for key, tensor in tensors.items() if tensor.dtype in ("F16", "BF16")}
    counts = Counter(tensor.dtype for tensor in halves.values())
    if len(counts) < 2:
        return []
    usual = counts.most_common(1)[0][0]
    odd = {key: tensor for key, tensor in halves.items() if tensor.dtype != usual}
    return [f"{key} has type {t.dtype} in {t.file}, and the other {what} have {usual}" for key, t in odd.items()]
