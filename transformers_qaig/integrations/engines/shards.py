"""Makes this package's modules from the tensors that an engine loaded; neighbours of one scheme become one module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from ...formats.packing import pack_zero_point, unpack_zero_point
from ...formats.scheme import WeightScheme
from ...nn.checks import check_packed
from ...nn.embedding import QAIGEmbedding
from ...nn.linear import QAIGLinear
from ...nn.packed_module import PackedModule
from ...nn.packed_tensors import frozen
from .loaded_shards import TENSORS, LoadedShards


def make_linears(
    loaded: LoadedShards,
    in_features: int,
    out_features: Sequence[int],
    bias: Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
) -> nn.ModuleList:
    """Makes the modules whose outputs, one after the other, are those of a layer.

    Args:
        loaded: what was loaded.
        in_features: of the layer.
        out_features: of its shards.
        bias: of the whole layer, or None.
        device: where the modules go.
        dtype: of a shard that is not packed.

    Raises:
        ValueError: a tensor is missing, or does not fit.
    """
    made: list[nn.Module] = []
    pairs = zip(loaded.schemes, out_features, loaded.shards, strict=True)
    for scheme, group in groupby(pairs, key=lambda pair: pair[0]):
        members = list(group)
        if scheme is None:
            made += [_dense(loaded.name, in_features, rows, found, device, dtype) for _, rows, found in members]
            continue
        layers = [packed_linear(loaded.name, scheme, in_features, rows, found, device) for _, rows, found in members]
        made.append(layers[0] if len(layers) == 1 else _concatenated(layers, scheme))
    start = 0
    for module in made:
        assert isinstance(module, (QAIGLinear, nn.Linear))
        if bias is not None:
            module.bias = frozen(bias.data[start : start + module.out_features].clone())
        start += module.out_features
        if isinstance(module, QAIGLinear):
            module.to_kernel_layout()
    return nn.ModuleList(made)


def make_embedding(
    loaded: LoadedShards, rows: int, columns: int, device: torch.device, dtype: torch.dtype
) -> QAIGEmbedding:
    """Makes packed embeddings. Arguments as in [`make_linears`]; `dtype` is that of what they return.

    Raises:
        ValueError: a tensor is missing, or does not fit; or the plan rotates them.
    """
    (scheme,) = loaded.schemes
    assert scheme is not None
    if scheme.rotation is not None:
        raise ValueError(f"{loaded.name} has a `rotation` in the plan, and embeddings have no input: it is damaged.")
    module = QAIGEmbedding(rows, columns, bits=scheme.bits, group_size=scheme.group_size, sym=scheme.sym, device="meta")
    _set_tensors(module, loaded.name, loaded.shards[0], device)
    module.compute_dtype = dtype
    return module


def packed_linear(
    name: str, scheme: WeightScheme, in_features: int, rows: int, found: Mapping[str, Tensor], device: torch.device
) -> QAIGLinear:
    """Makes a packed layer, which is not prepared.

    Args:
        name: of the layer, for messages.
        scheme: how its weight is stored.
        in_features: of the layer.
        rows: its output features.
        found: its tensors, by name.
        device: where they go.

    Raises:
        ValueError: a tensor is missing, or does not fit.
    """
    module = QAIGLinear.from_scheme(in_features, rows, scheme)
    _set_tensors(module, name, found, device)
    return module


def _set_tensors(module: PackedModule, name: str, found: Mapping[str, Tensor], device: torch.device) -> None:
    expected = [key for key in TENSORS if key != "weight_zero_point" or not module.sym]
    for key in expected:
        if key not in found:
            raise ValueError(f"{name}: the checkpoint holds no {key} for it, and its plan packs it: it is damaged.")
        setattr(module, key, frozen(found[key].to(device, copy=True)))
    if module.sym and "weight_zero_point" in found:
        raise ValueError(f"{name} is symmetric in the plan, and the checkpoint holds zero points: it is damaged.")
    check_packed(module, name, negative_scales=False)
    module.compute_dtype = module.weight_scale.dtype


def _concatenated(layers: Sequence[QAIGLinear], scheme: WeightScheme) -> QAIGLinear:
    """Makes one layer of several that have the same scheme and read the same input."""
    rows, first = sum(layer.out_features for layer in layers), layers[0]
    module = QAIGLinear.from_scheme(first.in_features, rows, scheme, dtype=first.weight_scale.dtype)
    module.weight_packed = frozen(torch.cat([layer.weight_packed for layer in layers]))
    module.weight_scale = frozen(torch.cat([layer.weight_scale for layer in layers]))
    module.weight_shape = frozen(torch.tensor([rows, first.in_features], device=first.device))
    if not scheme.sym:
        zeros = [
            unpack_zero_point(layer.weight_zero_point.data, scheme.bits, layer.out_features)
            for layer in layers
            if layer.weight_zero_point is not None
        ]
        module.weight_zero_point = frozen(pack_zero_point(torch.cat(zeros), scheme.bits))
    return module


def _dense(
    name: str, in_features: int, rows: int, found: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> nn.Linear:
    weight = found.get("weight")
    if weight is None or weight.shape != (rows, in_features):
        shape = None if weight is None else tuple(weight.shape)
        raise ValueError(f"{name}: the checkpoint must hold a weight of shape {(rows, in_features)}, it holds {shape}.")
    linear = nn.Linear(in_features, rows, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.to(device, dtype, copy=True), requires_grad=False)
    return linear
