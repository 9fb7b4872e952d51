"""No conversion of any family takes a packed tensor for one that it merges, splits or turns."""

from collections.abc import Iterator

import pytest
from transformers.conversion_mapping import _build_checkpoint_conversion_mapping, get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, WeightTransform, rename_source_key

from transformers_qaig.loading.conversions import is_packed_name, sparing_packed

LINEAR = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
STACK = [
    f"{name}_{tensor}" for name in ("gate_proj", "up_proj", "down_proj") for tensor in ("packed", "scale", "zero_point")
]
MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj", "attn.qkv",
           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.shared_experts.down_proj",
           "linear_attn.in_proj_qkvz")  # fmt: skip
STACKS = ("mlp.experts", "feed_forward.experts", "block_sparse_moe.experts", "mixer.experts", "experts",
          "mlp.text_moe.experts", "mlp.vision_moe.experts")  # fmt: skip


def conversions(family: str) -> list[WeightTransform]:
    return sparing_packed(get_checkpoint_conversion_mapping(family) or [])


def keys_of(family: str) -> Iterator[str]:
    """Every key that may be written for a model of this family: usual places, and where its conversions point to."""
    converters = [
        entry for entry in get_checkpoint_conversion_mapping(family) or [] if isinstance(entry, WeightConverter)
    ]
    places = {pattern.removesuffix(".weight") for entry in converters for pattern in entry._original_target_patterns}
    places |= {pattern.removesuffix(".weight") for entry in converters for pattern in entry._original_source_patterns}
    plain = [place.strip(".^$").replace("\\.", ".").replace(".*", ".3") for place in places if "(" not in place]
    for prefix in ("model.layers.0.", "model.language_model.layers.0.", "model.vision_tower.encoder.layers.0."):
        for module in (*MODULES, *plain):
            yield from (f"{prefix}{module}.{tensor}" for tensor in LINEAR)
        for stack in (*STACKS, *(place.rpartition(".")[0] for place in plain if "experts" in place)):
            yield from (f"{prefix}{stack}.{tensor}" for tensor in STACK)


FAMILIES = sorted(_build_checkpoint_conversion_mapping())


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_tensors_are_left_alone_on_loading_and_on_saving(family: str) -> None:
    there = conversions(family)
    back = [entry.reverse_transform() for entry in there[::-1]]
    for entries, reverse in ((there, False), (back, True)):
        renamings = [entry for entry in entries if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in entries if isinstance(entry, WeightConverter)]
        for key in keys_of(family):
            assert is_packed_name(key)
            renamed, taken = rename_source_key(key, renamings, converters, reverse=reverse)
            assert taken is None, f"{taken} takes {key}"
            kept = key.rpartition(".")[2] if key.rpartition(".")[2] in STACK else LINEAR
            assert renamed.endswith(kept), f"{key} becomes {renamed}"


def test_without_the_guard_some_are_taken() -> None:
    taken = []
    for family in FAMILIES:
        converters = [e for e in get_checkpoint_conversion_mapping(family) or [] if isinstance(e, WeightConverter)]
        back = [entry.reverse_transform() for entry in converters[::-1]]
        taken += [
            key for key in keys_of(family) for group in (converters, back) if rename_source_key(key, [], group)[1]
        ]
    assert taken


def test_other_tensors_are_converted_as_before() -> None:
    family = "mixtral"
    plain, sparing = get_checkpoint_conversion_mapping(family), conversions(family)
    for entry, other in zip(plain, sparing):
        for key in ("model.layers.0.mlp.experts.3.w1.weight", "model.layers.0.block_sparse_moe.gate.weight"):
            assert entry.rename_source_key(key) == other.rename_source_key(key)


def test_names_of_others_are_not_ours() -> None:
    for name in ("model.layers.0.mlp.experts.gate_up_proj_scale_inv", "model.logit_scale", "a.router.per_expert_scale"):
        assert not is_packed_name(name)
