"""Collects the tensors and the file metadata that `save_pretrained` writes for a packed model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from transformers import PreTrainedModel

from ..loading.guard import guard_tensors
from ..loading.rotation_record import record_rotations
from ..loading.save_mark import save_mark
from ..loading.unused_tensors import UnusedTensor, read_unused
from ..loading.width_record import record_widths
from ..plan.experts import expand
from ..scheme import Plan


def checkpoint_tensors(
    model: PreTrainedModel, plan: Plan, unused: Iterable[UnusedTensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a packed model in the checkpoint layout, and the metadata of each file.

    Args:
        model: packed as `plan` says; may be on the meta device.
        plan: weight path to scheme.
        unused: tensors of the source that the model has no place for; they are kept in the file.
    """
    # A tied head and its embeddings give two copies of what they hold in the kernels' order.
    tensors = {k: v for k, v in model.state_dict().items() if k not in model.all_tied_weights_keys}
    tensors |= read_unused(list(unused)) | guard_tensors(plan, model.dtype)
    return tensors, record_rotations(plan) | record_widths(expand(plan, model)) | save_mark(tensors)
