"""`ModelStructure`: the parts and facts of a model, for code that reads them and does not run the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .find import (
    Found,
    find_decoder_blocks,
    find_input_embeddings,
    find_lm_head,
    find_text_encoder,
    has_float32,
    is_encoder_decoder,
    is_tied,
    picture_tokens,
    shared_parameters,
)

USUAL_TOKEN_BYTES = 2**14
"""Of a token's hidden states, where the embeddings do not tell."""


@dataclass(frozen=True)
class ModelStructure:
    """What a model is made of, when it was looked at. It is handed on to what runs nothing of the model.

    Attributes:
        model_name: of the model's class, for messages.
        dtype: of the model's weights.
        blocks: of the language model, by path, in the order of their lists; a text encoder's come first.
        token_inputs: path of a block → name of the model's input whose tokens it sees.
        answer_input: name of the model's input that holds the answer's tokens.
        embeddings: the input embeddings of the text.
        head: the output head.
        ties: name of a parameter → name of the one that it shares a tensor with, now or once the weights are loaded.
        shared: `id` of every parameter that is used in several places.
        picture_tokens: ids of the tokens that stand for patches of images and videos.
        has_float32: whether a parameter of two or more dimensions is in float32.
    """

    model_name: str
    dtype: torch.dtype
    blocks: Mapping[str, nn.Module]
    token_inputs: Mapping[str, str]
    answer_input: str
    embeddings: Found
    head: Found
    ties: Mapping[str, str]
    shared: frozenset[int]
    picture_tokens: Sequence[int]
    has_float32: bool

    @classmethod
    def of(cls, model: nn.Module) -> ModelStructure:
        """Finds the structure of `model`, which may be on the meta device.

        Raises:
            ValueError: the model has no forward pass of its own, or no list of blocks.
        """
        blocks, encoder = find_decoder_blocks(model), find_text_encoder(model)
        answer = "decoder_input_ids" if is_encoder_decoder(model) else "input_ids"
        reads = {id(module) for module in encoder.modules()} if encoder is not None else set()
        return cls(
            model_name=type(model).__name__,
            dtype=getattr(model, "dtype", torch.float32),
            blocks=blocks,
            token_inputs={path: "input_ids" if id(block) in reads else answer for path, block in blocks.items()},
            answer_input=answer,
            embeddings=find_input_embeddings(model),
            head=find_lm_head(model),
            ties=getattr(model, "all_tied_weights_keys", {}),
            shared=shared_parameters(model),
            picture_tokens=picture_tokens(model),
            has_float32=has_float32(model),
        )

    @property
    def answering_blocks(self) -> list[nn.Module]:
        """The blocks that see the tokens of the answer: all but a text encoder's."""
        return [block for path, block in self.blocks.items() if self.token_inputs[path] == self.answer_input]

    @property
    def token_bytes(self) -> int:
        """The bytes of a token's hidden states."""
        weight = getattr(self.embeddings.module, "weight", None)
        return weight.shape[-1] * weight.element_size() if isinstance(weight, Tensor) else USUAL_TOKEN_BYTES

    @property
    def is_tied(self) -> bool:
        """Whether head and embeddings are one tensor, or will be once the weights are loaded."""
        return is_tied(self.ties, self.head, self.embeddings)

    def is_in_block(self, path: str) -> bool:
        """Whether the weight at `path` is in a block of the language model."""
        return any(f"{path}.".startswith(f"{block}.") for block in self.blocks)

    def without_tied_head(self, paths: Iterable[str]) -> list[str]:
        """Lists the paths, without a head that is tied to the embeddings: it is stored with them."""
        return [path for path in paths if path != self.head.path or not self.is_tied]
