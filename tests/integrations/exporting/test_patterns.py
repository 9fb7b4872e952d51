"""Names of modules in an export's config fit the modules that are meant, and no others."""

import re

from torch import nn
from transformers.quantizers.quantizers_utils import should_convert_module

from transformers_qaig.integrations.exporting.mlx import quantization_config
from transformers_qaig.integrations.exporting.patterns import module_names, patterns


def test_two_lists_of_layers_in_one_tower_have_patterns_of_their_own() -> None:
    (pattern,) = patterns(f"model.vision_model.transformer.layers.{i}.mlp.fc1" for i in (0, 1))
    expression = pattern.removeprefix("re:")
    assert re.match(expression, "vision_model.transformer.layers.1.mlp.fc1")
    assert re.match(expression, "vision_model.vision_model.transformer.layers.1.mlp.fc1")
    assert not re.match(expression, "model.vision_model.global_transformer.layers.1.mlp.fc1")


def test_a_language_model_is_found_by_its_names_in_transformers_and_in_vllm() -> None:
    (pattern,) = patterns(["model.language_model.layers.3.mlp.down_proj"])
    for name in ("model.language_model.layers.3.mlp.down_proj", "language_model.model.layers.3.mlp.down_proj"):
        assert re.match(pattern.removeprefix("re:"), name)


def test_a_block_that_is_left_out_is_not_the_beginning_of_another_ones_name() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"mlp": nn.Linear(2, 2)}) for _ in range(12))})
    names = module_names(model, ["layers.1"])
    assert any(name in "model.layers.1.mlp" or name in "layers.1.mlp" for name in names)
    assert not any(name in f"layers.{number}.mlp" for name in names for number in (0, 10, 11))


def test_a_part_that_is_left_out_is_found_by_transformers() -> None:
    """It looks at the beginning of a path, other engines anywhere in it."""
    model = nn.ModuleDict({"model": nn.ModuleDict({"tower": nn.Linear(2, 2)}), "lm_head": nn.Linear(2, 2)})
    names = module_names(model, ["model.tower", "lm_head"])
    assert names == ["tower", "model.tower", "lm_head"]
    assert not should_convert_module("model.tower.layers.0.fc1", names)


def test_mlx_finds_other_widths_of_a_tower_by_its_own_name() -> None:
    layers = {"model.layers.0.up": (32, 4), "model.layers.1.up": (32, 4), "visual.blocks.0.attn.qkv": (32, 8)}
    assert quantization_config(layers)["vision_tower.blocks.0.attn.qkv"] == {"group_size": 32, "bits": 8}
