"""`ModelInputs`: the facts of a model that its samples depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from ..structure import find_input_embeddings
from .decoder_inputs import DecoderInputs


@dataclass(frozen=True)
class ModelInputs:
    """The inputs that a model takes.

    Attributes:
        has_images: whether images are among them. If so, a set without a single image is warned about.
        context: the most tokens; None: not known.
        vocab_size: token ids are below; None: not known.
        decoder: of an encoder-decoder model: adds what its decoder reads.
    """

    has_images: bool = True
    context: int | None = None
    vocab_size: int | None = None
    decoder: DecoderInputs | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, picture_ids: Sequence[int]) -> ModelInputs:
        """Reads what `model`, which may be on the meta device, takes.

        Args:
            model: whose config and embeddings are read.
            picture_ids: ids of its placeholders for pictures and videos.
        """
        has_images = hasattr(model.config, "vision_config")
        return cls(has_images, _context(model), _vocab_size(model, picture_ids), DecoderInputs.of(model))


def _vocab_size(model: PreTrainedModel, picture_ids: Sequence[int]) -> int | None:
    """Returns the limit of token ids.

    It covers the rows of the embedding, and ids of placeholders that the model replaces before a lookup.
    """
    embeddings = find_input_embeddings(model).module
    weight = getattr(embeddings, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    rows = weight.shape[0] + int(getattr(embeddings, "num_additional_embeddings", 0))
    return max([rows, *(token + 1 for token in picture_ids)])


def _context(model: PreTrainedModel) -> int | None:
    """Returns the most tokens that the model can take, if its config says so."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None
