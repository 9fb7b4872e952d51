"""`LoadedShards`: collects a layer's tensors while an engine streams a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...formats.scheme import WeightScheme
from ...utils.quote import quote

TENSORS = {
    "weight_packed": torch.int32,
    "weight_scale": None,
    "weight_zero_point": torch.int32,
    "weight_shape": torch.int64,
}
_SHARDS = {"q": 0, "k": 1, "v": 2}


class LoadedShards:
    """Takes the tensors that an engine loads into a layer, by shard, and holds them until the layer is made.

    Engines write into parameters of known shapes. The shards of one layer may have different widths here, so the
    parameters are empty, and their `weight_loader` keeps what it is given.

    Args:
        name: of the layer, for messages.
        schemes: of each shard; None for one that is not packed.
    """

    def __init__(self, name: str, schemes: Sequence[WeightScheme | None]):
        self.name, self.schemes = name, schemes
        self.shards: list[dict[str, Tensor]] = [{} for _ in schemes]
        self.parts = len(schemes)
        """Of the engine's layer. One of two shards may hold several, as q, k and v do where z is apart."""
        self._parts_of_first = 1
        self.ignores_weight = False
        """Whether a full weight of a packed shard is left out instead of refused."""

    def register(self, layer: nn.Module, dtype: torch.dtype) -> None:
        """Gives `layer` the empty parameters that an engine loads into.

        One is called `weight`: the guard of a checkpoint is loaded into it, and code reads its dtype.

        Args:
            layer: the engine's layer.
            dtype: of the layer.
        """
        for key, own in {"weight": None, **TENSORS}.items():
            parameter = nn.Parameter(torch.empty(0, dtype=own or dtype), requires_grad=False)
            parameter.weight_loader = self._loader(key)  # type: ignore[attr-defined]
            layer.register_parameter(key, parameter)

    def sizes(self, parts: Sequence[int]) -> list[int]:
        """Returns the output features of every shard, once it is loaded.

        Args:
            parts: output features of the parts of the engine's layer.
        """
        first = self._parts_of_first
        return list(parts) if len(parts) == len(self.schemes) else [sum(parts[:first]), sum(parts[first:])]

    def release(self, layer: nn.Module) -> None:
        """Removes the empty parameters, except `weight`, and drops what was loaded."""
        for key in TENSORS:
            delattr(layer, key)
        self.shards = []

    def _loader(self, key: str) -> Any:
        def load(_: nn.Parameter, tensor: Tensor, loaded_shard_id: Any = None) -> None:
            index = self._index(loaded_shard_id)
            if key == "weight" and self.schemes[index] is not None:
                if tensor.numel() and not self.ignores_weight:
                    raise ValueError(f"{self.name} is packed, and its file holds a full weight, too: it is damaged.")
                return  # the guard, which stops a Transformers without this package
            self.shards[index][key] = tensor

        return load

    def _index(self, shard: Any) -> int:
        index = _SHARDS.get(shard, shard) if isinstance(shard, str) else shard
        if index is None and len(self.shards) == 1:
            return 0
        if isinstance(index, int) and 0 <= index < len(self.shards) == self.parts:
            return index
        if len(self.shards) == 2 < self.parts:
            parts = index if isinstance(index, tuple) else (index,)
            rest = self.parts - len(parts)
            if parts and rest > 0 and parts in (tuple(range(len(parts))), tuple(range(rest, self.parts))):
                self._parts_of_first = len(parts) if parts[0] == 0 else rest
                return int(parts[0] != 0)
        raise ValueError(
            f"{self.name} is made of {len(self.shards)} tensors in the plan, and the engine loads part {quote(shard)} "
            "of it: this model's layers are fused in a way that is not supported."
        )
