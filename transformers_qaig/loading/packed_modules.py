"""Checks packed modules after loading, prepares them for their device, and turns them back into dense ones."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from torch import nn
from transformers import PreTrainedModel

from ..nn.checks import check_finite, check_packed
from ..nn.embedding import QAIGEmbedding
from ..nn.experts import QAIGExperts
from ..nn.experts_checks import check_packed_experts
from ..nn.experts_layout import find_experts
from ..nn.linear import QAIGLinear
from ..nn.packed_module import PackedModule
from ..plan.experts import owner
from ..scheme import Plan
from ..utils.finite import buffers_with_nan
from ..utils.logging import tqdm
from .tied_embeddings import replace, uninstall_tied_embeddings


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
    packed = packed_modules(model, plan)
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


def prepare(model: nn.Module, plan: Plan) -> None:
    """Converts the packed modules to the layout of their device's kernels, one after the other."""
    modules = packed_modules(model, plan).values()
    for module in tqdm(modules, desc="Preparing packed layers", unit="layer", leave=False):
        module.prepare()


def unpack_modules(model: PreTrainedModel, plan: Plan, dtype: torch.dtype | None) -> None:
    """Replaces packed modules by dense ones.

    Args:
        model: all its packed weights are in memory.
        plan: of its packed modules.
        dtype: of the weights; None: the dtype in which each module computes.

    Raises:
        ValueError: some weights are offloaded; nothing was changed.
    """
    modules = packed_modules(model, plan)
    absent = [path for path, module in modules.items() if module.is_offloaded]
    if absent:
        raise ValueError(
            f"dequantize() needs all packed weights in memory, and those of {absent[0]} (and {len(absent) - 1} "
            "others) are offloaded: load the model without offloading, as with `device_map='cpu'`."
        )
    for path, packed in modules.items():
        if isinstance(packed, (QAIGEmbedding, QAIGExperts)):
            replace(model, packed, packed.to_dense(dtype))
            continue
        assert isinstance(packed, QAIGLinear)
        weight = packed.dequantize(dtype)
        linear = nn.Linear(packed.in_features, packed.out_features, packed.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight)
        if packed.bias is not None:
            linear.bias = nn.Parameter(packed.bias.to(weight.dtype))
        model.set_submodule(path, linear)
    uninstall_tied_embeddings(model)


def packed_modules(model: nn.Module, plan: Plan) -> dict[str, PackedModule | QAIGExperts]:
    """Returns the packed modules that hold the weights of `plan`, by path; a stack of experts is one of them."""
    stacks = find_experts(model)
    modules: dict[str, PackedModule | QAIGExperts] = {}
    for path in dict.fromkeys(owner(path, stacks) for path in plan):
        module = model.get_submodule(path)
        assert isinstance(module, (PackedModule, QAIGExperts))
        modules[path] = module
    return modules
