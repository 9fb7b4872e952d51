"""The parts of a vision-language model, found by its structure: no table of models is needed."""

from .find import (
    Found,
    are_tied,
    find_decoder_blocks,
    find_input_embeddings,
    find_lm_head,
    find_vision_tower,
    is_block_list,
    is_encoder_decoder,
    picture_tokens,
    shared_parameters,
)
from .model_structure import ModelStructure

__all__ = [
    "Found",
    "ModelStructure",
    "are_tied",
    "find_decoder_blocks",
    "find_input_embeddings",
    "find_lm_head",
    "find_vision_tower",
    "is_block_list",
    "is_encoder_decoder",
    "picture_tokens",
    "shared_parameters",
]
