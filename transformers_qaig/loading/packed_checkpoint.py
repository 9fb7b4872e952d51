"""Opens a packed checkpoint: packed modules on the meta model, and every check that needs no weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from transformers import PreTrainedModel

from ..config import QAIGConfig
from ..formats.scheme import Plan, parse_plan
from ..nn.experts_layout import find_experts
from ..plan.experts import saved_plan
from .checkpoint import check_headers, check_number
from .guard import guard_patterns
from .local_names import ignored_patterns, localise
from .rotation_record import check_rotations
from .save_mark import check_one_save
from .shards import check_files
from .skeleton import pack_modules
from .text_config import whole_settings
from .unused_tensors import UnusedTensor, find_unused, saved_tensors, warn_of_missing_layers
from .width_record import check_widths


@dataclass(frozen=True)
class PackedCheckpoint:
    """What a packed checkpoint says before its weights are read.

    Attributes:
        config: its settings, with the plan in the names of this model.
        plan: weight path to scheme, in the names of this model.
        unused: stored tensors that the model has no place for, to be saved again.
        dtypes: of every parameter and buffer, by name, as they must be once loaded. Empty without files.
    """

    config: QAIGConfig
    plan: Plan
    unused: list[UnusedTensor] = field(default_factory=list)
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)


def open_packed(model: PreTrainedModel, files: Sequence[str], config: QAIGConfig) -> PackedCheckpoint:
    """Puts packed modules into `model` and compares it with the files' headers.

    Args:
        model: on the meta device, in full precision.
        files: paths of the shards; may be empty for weights that come from a state dict.
        config: from config.json. One without a plan belongs to a part of a model: the whole model's is read instead.

    Raises:
        ValueError: naming what is damaged, missing or does not fit.
    """
    check_files(files, model.name_or_path or "")
    if not config.plan:
        settings = QAIGConfig.from_dict(whole_settings(files))
        assert isinstance(settings, QAIGConfig)
        config = settings
    check_number(config.plan or {}, files)
    local = localise(parse_plan(config.plan, config.activation_bits), model, files)
    check_rotations(local.plan, model, files)
    unexpected = guard_patterns(local) | ignored_patterns(model, local.absent)
    model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), *unexpected}
    config.plan = saved_plan(local.plan, find_experts(model))
    pack_modules(model, local.plan)
    if not files:
        return PackedCheckpoint(config, local.plan)
    check_one_save(files)
    # The loader casts to what it finds: scales keep their dtype whatever `dtype` the model is loaded in.
    for name, stored in check_headers(model, local.plan, files).items():
        parameter = model.get_parameter(name)
        parameter.data = parameter.data.to(stored)
    check_widths(local.plan, files)
    unused = find_unused(model, files, guard_patterns(local))
    warn_of_missing_layers(model, unused)
    dtypes = {name: t.dtype for name, t in chain(model.named_parameters(), model.named_buffers())}
    return PackedCheckpoint(config, local.plan, saved_tensors(model, unused), dtypes)
