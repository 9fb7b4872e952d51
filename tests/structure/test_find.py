"""Where the blocks, the tower, the embeddings and the head of a model are."""

import pytest
import torch
from torch import nn
from transformers import GitConfig, GitForCausalLM

from tests.families import FAMILIES, build
from tests.sweep.models import WITH_PICTURES, tiny
from transformers_qaig.structure import find_decoder_blocks, find_input_embeddings, find_lm_head, find_vision_tower
from transformers_qaig.structure.find import has_float32


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_the_language_models(family: str) -> None:
    model, _ = build(family)
    blocks = find_decoder_blocks(model)
    assert len(blocks) == model.config.get_text_config().num_hidden_layers
    assert list(blocks.values()) == list(model.get_decoder().layers)
    assert all(model.get_submodule(path) is block for path, block in blocks.items())


def test_a_tower_that_the_decoder_owns_is_no_block_of_the_language_model() -> None:
    """GIT's decoder holds its image encoder, Chameleon's its image tokenizer."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = GitConfig(
        vision_config=vision,
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    with torch.device("meta"):
        model = GitForCausalLM(config)
    assert list(find_decoder_blocks(model)) == ["git.encoder.layer.0", "git.encoder.layer.1"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tower_and_the_projector_are_found(family: str) -> None:
    model, _ = build(family)
    found = find_vision_tower(model)
    inside = {id(module) for part in found.values() for module in part.modules()}
    text = {id(module) for module in model.get_decoder().modules()}
    assert not inside & text
    rest = [n for n, m in model.named_modules() if type(m) is nn.Linear and id(m) not in inside | text]
    assert rest == ["lm_head"]
    assert find_lm_head(model).path == "lm_head"
    assert find_input_embeddings(model).module is model.get_input_embeddings()


@pytest.mark.parametrize(
    ("family", "path"),
    [("blip", "text_decoder.cls.predictions.decoder"), ("nemotron_h_omni", "language_model.lm_head")],
)
def test_the_head_of_a_decoder_is_found_where_the_model_names_none(family: str, path: str) -> None:
    if family not in WITH_PICTURES:
        pytest.skip("this Transformers has no such family")
    model, _ = tiny(family)
    assert model.get_output_embeddings() is None
    assert find_lm_head(model).path == path


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.float32,), True),
        ((torch.bfloat16,), False),
        ((torch.bfloat16, torch.float32), True),
        ((torch.float32, torch.bfloat16), True),
    ],
)
def test_a_norm_in_float32_does_not_count_and_any_matrix_does(dtypes: tuple[torch.dtype, ...], expected: bool) -> None:
    model = nn.ModuleList(nn.Linear(8, 8, dtype=dtype) for dtype in dtypes)
    model.norm = nn.LayerNorm(8)
    assert has_float32(model) == expected
