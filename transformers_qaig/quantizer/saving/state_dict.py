"""Collects the tensors and the file metadata that `save_pretrained` writes for a packed model."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ...formats.packing import CHECKPOINT_LAYOUT
from ...formats.scheme import Plan
from ...loading.guard import guard_tensors
from ...loading.rotation_record import record_rotations
from ...loading.save_mark import save_mark
from ...loading.unused_tensors import UnusedTensor, read_unused
from ...loading.width_record import record_widths
from ...nn.experts_layout import find_experts
from ...nn.packed_tensors import PackedTensors
from ...plan.experts import expand
from ...utils.memory import return_freed_memory
from ...utils.scratch import ScratchFiles


def checkpoint_tensors(
    model: PreTrainedModel, plan: Plan, unused: Iterable[UnusedTensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a packed model in the checkpoint layout, and the metadata of each file.

    Args:
        model: packed as `plan` says; may be on the meta device.
        plan: weight path to scheme.
        unused: tensors of the source that the model has no place for; they are kept in the file.
    """
    # A tied head and its embeddings give two copies of what they hold in a kernel layout.
    with ExitStack() as stack:
        scratch = ScratchFiles()
        for module in model.modules():
            if isinstance(module, PackedTensors) and module.layout != CHECKPOINT_LAYOUT:
                hook = partial(_keep_converted, scratch)
                stack.callback(module.register_state_dict_post_hook(hook).remove)
        tensors = {k: v for k, v in model.state_dict().items() if k not in model.all_tied_weights_keys}
    tensors |= read_unused(list(unused)) | guard_tensors(plan, model.dtype)
    return tensors, record_rotations(plan) | record_widths(expand(plan, find_experts(model))) | save_mark(tensors)


def _keep_converted(
    scratch: ScratchFiles, module: nn.Module, tensors: dict[str, Any], prefix: str, metadata: Any
) -> None:
    """Moves what one module was converted to for saving to files, so that the model is not in memory twice."""
    for name, _ in module.named_parameters(recurse=False):
        tensors[prefix + name] = scratch.store(tensors[prefix + name])
    return_freed_memory()
