"""`ServedPlan`: a checkpoint's plan by the names of an engine's layers, which fuse several linears."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from ...formats.scheme import Plan, WeightScheme
from ...nn.experts_layout import split_path
from ...nn.projection_scheme import ProjectionScheme
from ...plan.experts import EVERY, indices_of

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "w13": ("w1", "w3"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
}
"""What engines fuse in nearly all models; a model's own `packed_modules_mapping` counts before this."""
EMBEDDINGS, HEADS = ("embed_tokens", "embeddings", "embed_in", "word_embeddings", "wte"), ("lm_head", "embed_out")
"""Last parts of their names."""
_TOWER_LEVEL = ("vision_tower.vision_model.", "vision_tower.")
"""Engines have a level of modules in towers that Transformers removed; names are compared without it."""


class ServedPlan:
    """Finds the schemes of an engine's layers.

    Args:
        plan: of config.json.
    """

    def __init__(self, plan: Plan):
        self._plan = {_short(path): scheme for path, scheme in plan.items()}
        self._unused = set(self._plan)
        self.has_tower_level = False
        """Whether a layer was asked for whose name has the level that this file's names lack."""

    def rename(self, name_of: Callable[[str], str | None]) -> None:
        """Translates every path. One that becomes None is left out.

        Args:
            name_of: from a tensor's name to the engine's; paths are given to it with `.weight` at their end.
        """
        names: dict[str, str] = {}
        for path in self._plan:
            parts = split_path(path)  # some engines have names of their own for projections; the files have ours
            above, below = (path, "") if parts is None else (parts[0], f".{parts[1]}.{parts[2]}")
            name = name_of(f"{above}.weight")
            if name is not None:
                names[path] = _short(name.removesuffix(".weight")) + below
        self._plan = {name: self._plan[path] for path, name in names.items()}
        self._unused = {name for path, name in names.items() if path in self._unused}

    @property
    def unused(self) -> list[str]:
        """The paths that no layer has asked for."""
        return sorted(self._unused)

    def linear(self, name: str, fused: Mapping[str, Sequence[str]]) -> list[WeightScheme | None] | None:
        """Returns the scheme of each shard of a linear; None for a shard that is not packed.

        Args:
            name: of the engine's layer.
            fused: last part of a fused layer's name → those of its shards.

        Returns:
            one entry for a layer that the file holds whole; None if no shard is packed.
        """
        name = self._known(name.removeprefix("."))
        if name in self._plan:
            return [self._use_scheme(name)]
        parent, _, last = name.rpartition(".")
        for parts in (fused.get(last, ()), FUSED.get(last, ())):  # a model says what one of its parts fuses
            shards = [self._use_scheme(f"{parent}.{part}".removeprefix(".")) for part in parts]
            if any(shards):
                return shards
        return None

    def experts(self, name: str, count: int) -> dict[str, ProjectionScheme]:
        """Returns how each projection of a stack of experts is stored; nothing if the stack is not packed.

        Args:
            name: of the engine's layer.
            count: of its experts.

        Raises:
            ValueError: the plan names an expert twice or not at all, or they differ in more than their bits.
        """
        found: dict[str, dict[int, WeightScheme]] = {}
        name = self._stack(name)
        for path in self._plan:
            parts = split_path(path)
            if parts is None or parts[0] != name:
                continue
            indices = range(count) if parts[1] == EVERY else indices_of(parts[1], count)
            named = found.setdefault(parts[2], {})
            scheme = self._use_scheme(path)
            if indices is None or scheme is None or named.keys() & set(indices):
                raise ValueError(f"The plan names experts of {name} that do not exist or twice, in {path}.")
            named |= dict.fromkeys(indices, scheme)
        short = [projection for projection, named in found.items() if len(named) < count]
        if short:
            raise ValueError(f"The plan packs some of the {count} experts of {name} only, in {short[0]}.")
        return {
            projection: ProjectionScheme.of([named[index] for index in range(count)], f"{name}: {projection}")
            for projection, named in found.items()
        }

    def _stack(self, name: str) -> str:
        """Returns the plan's name of a stack: an engine may call it otherwise, but then it is the block's only one."""
        stacks = {parts[0]: block_of(parts[0]) for parts in map(split_path, self._plan) if parts is not None}
        if name in stacks:
            return name
        same = [stack for stack, block in stacks.items() if block is not None and block == block_of(name)]
        return same[0] if len(same) == 1 else name

    def check_blocks(self) -> None:
        """Checks, once all layers exist, that the engine asked for all of a block or for nothing of it.

        Raises:
            ValueError: it did not. Some engines load a layer that gets no tensors from nothing, without a word.
        """
        known = {block_of(path) for path in self._plan.keys() - self._unused} - {None}
        left = [path for path in self.unused if block_of(path) in known]
        if left:
            raise ValueError(
                f"This engine has no layer for the packed weight {left[0]} ({len(left)} such), and has others of its "
                "block: it calls or fuses layers of this model in a way that is not supported. Serve it with "
                "Transformers, or quantize it with these layers left out."
            )

    def rows(self, name: str, is_head: bool = False) -> WeightScheme | None:
        """Returns the scheme of embeddings or of a head; None if it is not packed.

        Args:
            name: of the engine's layer; some models give none, Qwen3-VL a short one to its head, StableLM `.lm_head`.
            is_head: whether it is a head.
        """
        name = name.removeprefix(".")
        if not name or (is_head and name in HEADS and name not in self._plan):
            last = HEADS if is_head else EMBEDDINGS
            found = [path for path in self._plan if path.rpartition(".")[-1] in last]
            name = found[0] if len(found) == 1 else name
        return self._use_scheme(self._known(name))

    def _known(self, name: str) -> str:
        short = _short(name)
        self.has_tower_level |= short != name
        return short

    def _use_scheme(self, path: str) -> WeightScheme | None:
        self._unused.discard(path)
        return self._plan.get(path)


def _short(name: str) -> str:
    return name.replace(*_TOWER_LEVEL)


def block_of(path: str) -> str | None:
    """Returns the path of the block that a weight or a stack of experts is in: up to the last number."""
    parts = split_path(path)
    match = re.match(r".*\.\d+(?=\.)", parts[0] if parts is not None else path)
    return match and match[0]
