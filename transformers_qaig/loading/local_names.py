"""Translates the names of a checkpoint's tensors and plan to the class that loads them.

That class may be another one than the class that saved.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, WeightTransform, rename_source_key

from ..formats.scheme import Plan, WeightScheme
from ..nn.experts_layout import PROJECTIONS, ExpertsLayout, expert_path, find_experts, split_path
from ..plan.experts import EVERY, expand_path, owner
from ..structure import are_tied, find_input_embeddings, find_lm_head
from ..utils.quote import quote
from .conversions import loading_conversions, sparing_packed


def loader_naming(
    model: PreTrainedModel, convert: bool = True, conversions: Sequence[WeightTransform] | None = None
) -> Callable[[str], str]:
    """Returns the function from a stored name to the name in `model`, as Transformers' loader has it.

    Old names become new ones. Prefixes come and go between a composite, its text model and their base models. The
    tensors that `model` has now count: a name is looked up among them.

    Args:
        model: that is being loaded.
        convert: whether a tensor that is stacked or split on loading gets the name of what it becomes a part of.
        conversions: by default those of [`loading_conversions`].
    """
    conversions = loading_conversions(model) if conversions is None else conversions
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)] if convert else []
    tensors = model.state_dict()

    def name(key: str) -> str:
        renamed, _ = rename_source_key(key, renamings, converters, model.base_model_prefix, tensors)
        return key if renamed not in tensors and key in tensors else renamed

    return name


def merging(model: PreTrainedModel) -> Callable[[str], bool]:
    """Returns the test whether the loader merges a stored tensor with others: experts, fused projections."""
    conversions = loading_conversions(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    return lambda key: rename_source_key(key, renamings, converters)[1] is not None


def is_class_that_saved(model: PreTrainedModel) -> bool:
    """Whether a model of this class saved the checkpoint: then it has a module for all that is packed."""
    return type(model).__name__ in (model.config.architectures or ())


def lacks_part(model_modules: Mapping[str, nn.Module], path: str) -> bool:
    """Whether the model has no module for the part that `path` belongs to, such as a tower or a head.

    A gap inside a list of layers is no missing part: that checkpoint is damaged, or belongs to another model.
    """
    parts = path.split(".")
    above = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    known = [name for name in above if name in model_modules]
    return len(known) < len(above) and not any(isinstance(model_modules[name], nn.ModuleList) for name in known)


@dataclass
class LocalPlan:
    """A checkpoint's plan in a model's own names.

    Attributes:
        plan: what this model packs.
        absent: what it has no module for, as its loader would name it.
        names: every path of the checkpoint's plan → the name here.
    """

    plan: dict[str, WeightScheme] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)


def localise(plan: Plan, model: PreTrainedModel, files: Sequence[str] = ()) -> LocalPlan:
    """Translates a plan to the names of `model`.

    Args:
        plan: of the checkpoint's config.json.
        model: on the meta device, with nothing packed yet.
        files: the checkpoint's shards; their names show what the plan means where renaming its paths does not.

    Raises:
        ValueError: a path is neither a linear nor the embeddings of this model; two paths are the same one; or this
            class has a module for none.
    """
    modules, embeddings, stacks = dict(model.named_modules()), find_input_embeddings(model).module, find_experts(model)
    local = LocalPlan(names=local_paths(plan, model, files))
    for path, scheme in plan.items():
        name = local.names[path]
        if not is_class_that_saved(model) and lacks_part(modules, name):
            local.absent.append(name)
            continue
        for each in expand_path(name, stacks):
            _check_local(path, each, scheme, modules, embeddings, stacks, type(model).__name__)
            if each in local.plan:
                raise ValueError(
                    f"The plan in config.json packs {quote(each)} twice (again as {quote(path)}): it is damaged."
                )
            local.plan[each] = scheme
    if not local.plan:
        raise ValueError(
            f"{type(model).__name__} has no module for any weight that the plan in config.json packs, such as "
            f"{quote(next(iter(plan)))}: load the model as it was saved, with AutoModelForImageTextToText."
        )
    head = find_lm_head(model).path
    if are_tied(model) and local.plan.get(head) != local.plan.get(find_input_embeddings(model).path):
        raise ValueError(
            f"The plan in config.json packs {head!r} and the embeddings that it is tied to in different ways: it is "
            "damaged."
        )
    return local


def _check_local(
    path: str,
    name: str,
    scheme: WeightScheme,
    modules: Mapping[str, nn.Module],
    embeddings: nn.Module | None,
    stacks: Mapping[str, ExpertsLayout],
    model: str,
) -> None:
    """Raises `ValueError` unless `name`, which the plan calls `path`, can be packed as `scheme` says."""
    module, is_expert = modules.get(name), _is_expert(name, stacks)
    is_embeddings = isinstance(module, nn.Embedding) and module is embeddings
    if type(module) is not nn.Linear and not is_embeddings and not is_expert:
        raise ValueError(
            f"The plan in config.json packs {quote(path)}, which is neither a linear layer nor an expert nor the "
            f"embeddings of {model}: the checkpoint is damaged or belongs to another architecture."
        )
    if scheme.rotation is not None and (is_embeddings or is_expert):
        what = "embeddings" if is_embeddings else "experts"
        raise ValueError(f"The plan in config.json rotates {quote(path)}, and {what} cannot be: it is damaged.")


def local_paths(paths: Iterable[str], model: PreTrainedModel, files: Sequence[str] = ()) -> dict[str, str]:
    """Returns every path of modules in a checkpoint → its name in `model`. Arguments as in [`localise`]."""
    modules, stacks = dict(model.named_modules()), find_experts(model)
    name_of = loader_naming(model)
    known = modules.keys() | stacks.keys()
    names = {path: path if owner(path, stacks) in known else _weight_name(name_of, path) for path in paths}
    if all(owner(name, stacks) in known for name in names.values()) or is_class_that_saved(model):
        return names
    saver = model_that_saved(files)
    if saver is None:
        return names
    name_there = loader_naming(saver, conversions=sparing_packed(get_model_conversion_mapping(saver)))
    stored = {_weight_name(name_there, path): _weight_name(name_of, path) for path in packed_paths(files)}
    return {path: stored.get(path, name) for path, name in names.items()}


def _weight_name(name_of: Callable[[str], str], path: str) -> str:
    parts = split_path(path)
    if parts is None:
        return name_of(f"{path}.weight").removesuffix(".weight")
    stack, expert, projection = parts  # a stack's tensors have names of their own
    renamed = name_of(f"{stack}.{projection}_packed").removesuffix(f".{projection}_packed")
    return expert_path(renamed, expert, projection)


def _is_expert(path: str, stacks: Mapping[str, ExpertsLayout]) -> bool:
    """Whether a path names a weight of an expert that there is."""
    parts = split_path(path)
    layout = None if parts is None else stacks.get(parts[0])
    if parts is None or layout is None:
        return False
    _, expert, projection = parts
    is_index = expert.isdecimal() and str(int(expert)) == expert and int(expert) < layout.num_experts
    return is_index and projection in layout.projections


def packed_paths(files: Sequence[str]) -> list[str]:
    """Lists what is packed, by its names in the files; `….experts.*.down_proj` stands for a projection of a stack."""
    paths: list[str] = []
    for file in files:
        with safe_open(file, "pt") as stored:
            paths += filter(None, map(_packed_path, stored.keys()))
    return paths


def _packed_path(key: str) -> str | None:
    path, _, name = key.rpartition(".")
    if name == "weight_packed":
        return path
    projection = name.removesuffix("_packed")
    return expert_path(path, EVERY, projection) if projection != name and projection in PROJECTIONS else None


def model_that_saved(files: Sequence[str]) -> PreTrainedModel | None:
    """Makes a model of the class that saved the checkpoint, on the meta device; None if it is not Transformers' own."""
    if not files:
        return None
    try:
        config = AutoConfig.from_pretrained(Path(files[0]).parent, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    for name in config.architectures or ():
        cls: object = getattr(transformers, str(name), None)
        if (
            isinstance(cls, type)
            and issubclass(cls, PreTrainedModel)
            and type(config) is getattr(cls, "config_class", None)
        ):
            with torch.device("meta"):
                return cls(config)
    return None


def ignored_patterns(model: PreTrainedModel, absent: list[str]) -> set[str]:
    """Returns regular expressions of the packed tensors of missing parts, so that the loader ignores them."""
    modules = dict(model.named_modules())
    parts = {_missing_part(modules, path) for path in absent}
    ends = r"(weight_(packed|scale|zero_point|shape)|(gate|up|down)_proj_(packed|scale|zero_point))$"
    return {rf"(^|\.){re.escape(part)}\.(.*\.)?{ends}" for part in parts}


def _missing_part(modules: Mapping[str, nn.Module], path: str) -> str:
    """Returns the first missing module on a path: `model.visual.blocks.0.attn.qkv` → `model.visual`."""
    parts = path.split(".")
    above = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next(name for name in above if name not in modules)
