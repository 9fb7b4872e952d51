"""The guard: empty tensors in a checkpoint that stop a Transformers without this package, with a message."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from ..formats.scheme import Plan
from ..nn.experts_layout import split_path
from .local_names import LocalPlan

NOTICE = "these_weights_are_packed__install_transformers-qaig__and_import_transformers_qaig_first.rotary_emb.cos_cached"
"""
Transformers' table of unexpected tensors shows this name to whoever loads without the package. It ends like tables of
old rotary embeddings, which vLLM and SGLang leave out.
"""
_NOTICES = re.escape(NOTICE).replace("__install", "__(pip_)?install") + "$"
"""A pattern of this name, and of the one that earlier builds wrote."""


def guard_key(plan: Iterable[str]) -> str:
    """Returns the name of the guard: an empty tensor `<linear>.weight` beside the packed tensors of one linear.

    Without this package Transformers only warns of the unknown quantization method, and would generate from random
    weights. The empty tensor does not fit the linear that it then builds, so loading stops.
    """
    # Deep in the model: neither a head, which a base model does not have, nor a tensor that may be tied to another.
    linears = [path for path in plan if split_path(path) is None] or list(plan)
    return f"{min(linears, key=lambda path: (-path.count('.'), path))}.weight"


def guard_tensors(plan: Plan, dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns what is saved beside the packed tensors: the guard, and the notice that its error then shows."""
    return {guard_key(plan): torch.empty(0, dtype=dtype), NOTICE: torch.empty(0, dtype=dtype)}


def guard_patterns(local: LocalPlan) -> set[str]:
    """Returns regular expressions of both names as the loader sees them; files of 0.1.0 hold the guard alone."""
    path = guard_key(local.names).removesuffix(".weight")
    return {rf"(^|\.){re.escape(local.names[path])}\.weight$", _NOTICES}
