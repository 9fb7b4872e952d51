"""What calibration is told of a model instead of the model."""

import pytest

from tests.families import build
from tests.tiny_models.encoder_decoders import udop
from transformers_qaig.structure import ModelStructure, are_tied


def test_the_structure_of_an_encoder_decoder_tells_which_blocks_write_the_answer() -> None:
    structure = ModelStructure.of(udop()[0])
    assert list(structure.blocks) == list(structure.token_inputs)
    inputs = {path.partition(".")[0]: name for path, name in structure.token_inputs.items()}
    assert inputs == {"encoder": "input_ids", "decoder": "decoder_input_ids"}
    assert structure.answer_input == "decoder_input_ids"
    assert structure.answering_blocks == [block for path, block in structure.blocks.items() if "decoder" in path]


@pytest.mark.parametrize(("family", "tied"), [("llava", False), ("gemma3", True)])
def test_a_tied_head_is_stored_with_the_embeddings(family: str, tied: bool) -> None:
    model, _ = build(family)
    structure = ModelStructure.of(model)
    ends = [structure.embeddings.path, structure.head.path]
    assert structure.is_tied == tied == are_tied(model)
    assert structure.without_tied_head(ends) == ends[: 1 if tied else 2]
    assert (id(model.get_input_embeddings().weight) in structure.shared) == tied
    assert model.config.image_token_id in structure.picture_tokens
