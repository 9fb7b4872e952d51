"""Lists the ways to store weights outside the language model's blocks: of tower, projector, embeddings and head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from ..formats.scheme import MIN_GROUP_SIZE
from ..nn.embedding import why_not_packed
from ..nn.experts_layout import ExpertsLayout
from ..structure import Found, ModelStructure, find_vision_tower
from ..utils.errors import SettingError
from ..utils.logging import get_logger
from .allocate import SchemeOption
from .experts import owner
from .schemes import SchemeResolver
from .weights import weights_in, why_not

logger = get_logger(__name__)

EMBEDDINGS, EXPERTS = "embeddings and heads", "experts"
"""What is not rotated."""
SHAPE_BITS = 2 * 64
"""Every packed weight is stored with its shape, two int64; experts are not."""


def list_outside(
    model: nn.Module, structure: ModelStructure, resolver: SchemeResolver, stacks: Mapping[str, ExpertsLayout]
) -> dict[str, list[SchemeOption]]:
    """Lists the ways to store every weight outside the blocks that is to be packed, or may be under a budget.

    Args:
        model: may be on the meta device.
        structure: of the model.
        resolver: of the configuration.
        stacks: stacks of experts, by path.

    Returns:
        weight path → its ways, with their shapes in the sizes. Several are for a budget to choose from; staying as it
        is is then the last, except for experts. A tied head has no ways of its own where its embeddings have several.

    Raises:
        SettingError: a part that was asked for is missing or cannot be packed, or tied embeddings and head differ.
    """
    found = {**_vision(model, resolver, stacks), **_embeddings_and_head(structure, resolver)}
    return {
        path: options if owner(path, stacks) != path else [_with_shape(option) for option in options]
        for path, options in found.items()
    }


def _with_shape(option: SchemeOption) -> SchemeOption:
    return option if option.scheme is None or not option.size else replace(option, size=option.size + SHAPE_BITS)


def _vision(
    model: nn.Module, resolver: SchemeResolver, stacks: Mapping[str, ExpertsLayout]
) -> dict[str, list[SchemeOption]]:
    """Lists the tower's and the projector's linears."""
    config, bits = resolver.config, resolver.config.vision_bits
    is_open = bits is None and resolver.chooses_outside
    if bits is None and not is_open and not resolver.given:
        return {}
    candidates = config.candidates if is_open else None if bits is None else [config.scheme(bits)]
    try:
        modules = find_vision_tower(model)
    except ValueError as error:
        if bits is not None:
            raise SettingError(f"`vision_bits={bits}`: {error}") from error
        return {}
    packed = {}
    for path, parameter, reason in weights_in(modules, stacks):
        is_expert = owner(path, stacks) != path
        unrotated, may_stay = EXPERTS if is_expert else "", is_open and not is_expert
        options, reason = resolver.options(path, parameter, reason, candidates, unrotated, may_stay)
        if options:
            packed[path] = options
        elif candidates is not None:
            logger.info("%s stays as it is: %s", path, reason)
    if bits is not None and not packed:
        raise SettingError(f"`vision_bits={bits}`: no weight of the vision tower or the projector can be packed.")
    return packed


def _embeddings_and_head(structure: ModelStructure, resolver: SchemeResolver) -> dict[str, list[SchemeOption]]:
    """Lists embeddings and head."""
    config, embeddings, head, tied = resolver.config, structure.embeddings, structure.head, structure.is_tied
    asked = {"embedding_bits": config.embedding_bits, "lm_head_bits": config.lm_head_bits}
    if tied and None not in asked.values() and len(set(asked.values())) > 1:
        raise SettingError(
            f"{structure.model_name} ties its head to its embeddings: one tensor cannot have "
            f"`embedding_bits={config.embedding_bits}` and `lm_head_bits={config.lm_head_bits}`; give one of them."
        )
    wanted = dict(asked)
    if tied:
        asked = dict.fromkeys(asked, config.embedding_bits or config.lm_head_bits)
    packed: dict[str, list[SchemeOption]] = {}
    for (name, bits), found in zip(asked.items(), (embeddings, head)):
        is_open = bits is None and resolver.chooses_outside
        if bits is None and not is_open and found.path not in resolver.given:
            continue
        if reason := _why_stays_dense(structure, found):
            if is_open:
                logger.info("%s stays as it is: %s", found.path or name, reason)
                continue
            given = [f"`{key}`" for key, value in wanted.items() if value is not None] if tied else [f"`{name}`"]
            raise SettingError(f"{' and '.join(given) or f'`plan[{found.path!r}]`'}: {reason}.")
        assert found.module is not None
        candidates = config.candidates if is_open else None if bits is None else [config.scheme(bits)]
        weight = found.module.get_parameter("weight")
        options, _ = resolver.options(found.path, weight, "", candidates, EMBEDDINGS, is_open)
        if options:
            packed[found.path] = options
    return _as_one_tensor(structure, packed, resolver.chooses_outside) if tied and packed else packed


def _as_one_tensor(
    structure: ModelStructure, packed: Mapping[str, list[SchemeOption]], is_open: bool
) -> dict[str, list[SchemeOption]]:
    """Returns the ways that tied embeddings and head have in common. The tensor is stored once."""
    embeddings, head = structure.embeddings.path, structure.head.path
    ways = [packed.get(embeddings, []), packed.get(head, [])]
    if is_open and not all(ways):  # one of the two is excluded
        return {}
    common = [one for one in ways[0] if any(one.scheme == other.scheme for other in ways[1])]
    if not common:
        entries = [None if not w or w[0].scheme is None else w[0].scheme.to_dict() for w in ways]
        raise SettingError(
            f"{structure.model_name} ties its head to its embeddings: {embeddings!r} and {head!r} are one tensor and "
            f"need one entry, got {entries[0]} and {entries[1]}."
        )
    return {embeddings: common} if len(common) > 1 else {embeddings: common, head: [replace(common[0], size=0)]}


def _why_stays_dense(structure: ModelStructure, found: Found) -> str:
    """Returns why embeddings or a head cannot be packed; empty if they can."""
    if found.module is None:
        return f"{structure.model_name} has none"
    if isinstance(found.module, nn.Embedding):
        reason = why_not_packed(found.module)
        if min(found.module.weight.shape) < MIN_GROUP_SIZE:
            reason = f"{found.path} is of {tuple(found.module.weight.shape)}: too small to be worth packing"
    else:
        reason = why_not(found.module, "weight", found.path, {})
    if structure.is_tied and getattr(found.module, "bias", None) is not None:
        reason = f"{found.path} has a bias and is tied"
    pairs = [pair for pair in structure.ties.items() if f"{found.path}.weight" in pair]
    others = {name.removesuffix(".weight") for pair in pairs for name in pair}
    others -= {structure.embeddings.path, structure.head.path}
    if others:
        reason = (
            f"{found.path} is one tensor with {', '.join(sorted(others))}, and only embeddings and head can be packed "
            "as one. Leave the setting out"
        )
    return reason
