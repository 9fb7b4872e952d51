"""What a forward pass calls a block with, and running the block on it again.

A block that runs on trial gets copies of caches of keys and values: it must not write into the model's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import Cache

from ..distributed import ALONE, Ranks
from .exclusions import NotFinite

T = TypeVar("T")


@dataclass
class LayerInputs:
    """The arguments with which one sample's forward called one block."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def to(self, device: torch.device | str, *, own_caches: bool = True) -> LayerInputs:
        """Returns the same call with its tensors on `device`; one tensor passed twice stays one tensor.

        Args:
            device: of the tensors.
            own_caches: whether the call gets copies of caches, so that a trial leaves the model's own as they are.
        """
        moved = map_tensors(lambda tensor: tensor.to(device), (self.args, self.kwargs))
        return LayerInputs(*(with_own_caches(moved) if own_caches else moved))

    @property
    def nbytes(self) -> int:
        """Returns the bytes of the storages behind the tensors of this call, each counted once."""
        return storage_bytes(self.tensors)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, nested ones included."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]


def _refuse(found: Mapping[int, str]) -> None:
    raise NotFinite(*next(iter(found.items())))


@dataclass(frozen=True)
class TargetInputs:
    """The inputs with which the samples are paused at a target.

    Attributes:
        full: what the target is called with in the full-precision model, per sample of this rank.
        quantized: the same in the model that is quantized so far.
        masks: bool `[B, T]` per sample, True at real tokens.
        exclude_samples: removes samples, given with where each is not finite, from `full` and `quantized`; or raises.
        ranks: over which the samples are spread.
        pictures: bool `[B, T]` by sample, True at tokens of pictures; of no sample if the tokens are not the text's.
    """

    full: Mapping[int, LayerInputs]
    quantized: Mapping[int, LayerInputs]
    masks: Sequence[Tensor]
    exclude_samples: Callable[[Mapping[int, str]], None] = _refuse
    ranks: Ranks = ALONE
    pictures: Mapping[int, Tensor] = field(default_factory=dict)

    def samples(self) -> list[int]:
        """Returns the samples that wait at the target, of all ranks."""
        of_each_rank = self.ranks.gather(list(self.full))
        return of_each_rank[0] if len(of_each_rank) == 1 else sorted(chain(*of_each_rank))

    def of_each(self, samples: Iterable[int], compute: Callable[[int], T]) -> list[T]:
        """Returns what `compute` makes of each of `samples`, in their order: each on the rank that has it."""
        mine = ((place, sample) for place, sample in enumerate(samples) if sample in self.full)
        return self.ranks.of_each(mine, compute)

    def of_one(self, sample: int, compute: Callable[[LayerInputs], T]) -> T:
        """Returns what `compute` makes of a sample's call in full precision, on all ranks."""
        (found,) = self.of_each([sample], lambda one: compute(self.full[one]))
        return found


@torch.no_grad()
def forward(block: nn.Module, call: LayerInputs, *, on_trial: bool = True) -> Any:
    """Returns the block's output, whatever its form, on the block's device.

    Args:
        block: in full precision or quantized.
        call: what it is called with.
        on_trial: whether the model's caches stay as they are. Of the runs whose output the model goes on with, they get
            the keys and values.
    """
    call = call.to(next(block.parameters()).device, own_caches=on_trial)
    return block(*call.args, **call.kwargs)


def hidden_states(call: LayerInputs) -> Tensor | None:
    """Returns the hidden states in a call: its first floating tensor, or what it names so (a mask may come first)."""
    named = call.kwargs.get("hidden_states")
    if isinstance(named, Tensor):
        return named
    return next((tensor for tensor in call.tensors if tensor.is_floating_point()), None)


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Applies `function` to the tensors of nested containers, once to each, so that one tensor stays one tensor."""
    done: dict[int, Tensor] = {}

    def once(tensor: Tensor) -> Tensor:
        if id(tensor) not in done:
            done[id(tensor)] = function(tensor)
        return done[id(tensor)]

    return tree_map_only(Tensor, once, tree)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Returns the bytes of the storages behind tensors, each counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({(storage.device, storage.data_ptr()): storage.nbytes() for storage in storages}.values())


def with_own_caches(tree: T) -> T:
    """Returns nested containers with a copy of every cache in them; anything else stays the same object."""
    own: T = tree_map_only(Cache, _copy, tree)
    return own


def _copy(cache: Cache) -> Cache:
    # `deepcopy` refuses tensors that autograd recorded.
    return copy.deepcopy(cache, {id(tensor): tensor.clone() for tensor in _tensors(cache, set())})


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yields the tensors that an object holds, in its attributes and containers."""
    if id(value) in seen or isinstance(value, type):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for part in (*parts, *getattr(value, "__dict__", {}).values()):
        yield from _tensors(part, seen)
