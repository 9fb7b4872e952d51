"""Checks packed modules after loading, prepares them for their device, and turns them back into dense ones."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from torch import nn
from transformers import PreTrainedModel

from ..formats.scheme import Plan
from ..nn.checks import check_finite, check_packed
from ..nn.embedding import QAIGEmbedding
from ..nn.experts import QAIGExperts
from ..nn.experts_checks import check_packed_experts
from ..nn.linear import QAIGLinear
from ..nn.packed_module import PackedModule
from ..plan.experts import owner
from ..utils.finite import buffers_with_nan
from ..utils.logging import get_logger, tqdm
from ..utils.memory import free_memory, return_freed_memory
from ..utils.readable import readable_size
from .tied_embeddings import replace_everywhere, uninstall_tied_embeddings

logger = get_logger(__name__)

PACKED = PackedModule, QAIGExperts
"""The classes that hold packed weights."""

PREPARED_SHARE = 0.5
"""Of the free memory that a model mapped from files may take once it is prepared."""


def check_loaded(model: PreTrainedModel, plan: Plan, dtypes: Mapping[str, torch.dtype]) -> None:
    """Checks what a packed checkpoint loaded into a model, and casts its tensors to the right dtypes.

    Args:
        model: with its weights.
        plan: of its packed modules.
        dtypes: name → dtype. Transformers 5.17 leaves what it renames in the file's dtype.

    Raises:
        ValueError: naming a tensor that is damaged.
    """
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if not tensor.is_meta:
            tensor.data = tensor.data.to(dtypes.get(name, tensor.dtype))
    ties = model.all_tied_weights_keys
    packed = modules_of(model, plan)
    for path in sorted(packed, key=lambda path: f"{path}.weight_packed" in ties):  # named as in the files
        module = packed[path]
        if isinstance(module, QAIGExperts):
            check_packed_experts(module, path, negative_scales=False)
        else:
            check_packed(module, path, negative_scales=False)
    for name, parameter in model.named_parameters():
        check_finite(parameter, name)
    for name in buffers_with_nan(model):
        raise ValueError(f"{name} holds NaN: download the checkpoint or save it again")


def to_kernel_layout(model: nn.Module) -> None:
    """Converts the packed modules to the layout of their device's kernels, one after the other."""
    modules = packed_modules(model)
    for module in tqdm(modules.values(), desc="Preparing packed layers", unit="layer", leave=False):
        module.to_kernel_layout()
        return_freed_memory()


def fits_in_kernel_layout(model: nn.Module) -> bool:
    """Whether there is room for packed tensors that are mapped from files, once they are copied."""
    size = sum(tensor.nbytes for tensor in model.state_dict().values() if tensor.device.type == "cpu")
    free = free_memory(torch.device("cpu"))
    if size <= free * PREPARED_SHARE:
        return True
    logger.warning(
        "The packed model takes %s of the %s that are free, so its weights stay in the files of `work_dir`, which is "
        "slow to run. Save it, and load it where it fits.", readable_size(8 * size), readable_size(8 * free),
    )  # fmt: skip
    return False


def unpack_modules(model: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """Replaces packed modules by dense ones.

    Args:
        model: all its packed weights are in memory.
        dtype: of the weights; None: the dtype in which each module computes.

    Raises:
        ValueError: some weights are offloaded; nothing was changed.
    """
    modules = packed_modules(model)
    absent = [path for path, module in modules.items() if module.is_offloaded]
    if absent:
        raise ValueError(
            f"dequantize() needs all packed weights in memory, and those of {absent[0]} (and {len(absent) - 1} "
            "others) are offloaded: load the model without offloading, as with `device_map='cpu'`."
        )
    for packed in modules.values():
        assert isinstance(packed, (QAIGLinear, QAIGEmbedding, QAIGExperts))
        replace_everywhere(model, packed, packed.to_dense(dtype))
    uninstall_tied_embeddings(model)


def packed_modules(model: nn.Module) -> dict[str, PackedModule | QAIGExperts]:
    """Returns the packed modules of a model, by path; a stack of experts is one of them."""
    return {path: module for path, module in model.named_modules() if isinstance(module, PACKED)}


def modules_of(model: nn.Module, plan: Plan) -> dict[str, PackedModule | QAIGExperts]:
    """Returns the packed modules that hold the weights of `plan`, by the paths that the plan and the files have."""
    packed = {path: m for path, m in model.named_modules(remove_duplicate=False) if isinstance(m, PACKED)}
    return {path: packed[path] for path in dict.fromkeys(owner(path, packed) for path in plan)}
