"""Makes the decoder inputs of an encoder-decoder model: the answer, shifted by one token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from ..structure import is_encoder_decoder
from .tensors import NO_ANSWER, PER_TOKEN


@dataclass(frozen=True)
class DecoderInputs:
    """Adds `decoder_input_ids` to samples of an encoder-decoder model.

    Attributes:
        start: the token that an answer begins after.
        pad: the token that padding is filled with.
    """

    start: int
    pad: int

    @classmethod
    def of(cls, model: nn.Module) -> DecoderInputs | None:
        """Returns what the samples of `model` need; None for a model that has no encoder of text or pictures."""
        if not is_encoder_decoder(model):
            return None
        config: PretrainedConfig = model.config  # type: ignore[assignment]
        configs: list[object] = [config, config.get_text_config(), config.get_text_config(decoder=True)]
        configs.append(getattr(model, "generation_config", None))

        def first(*names: str) -> int:
            values = (getattr(one, name, None) for name in names for one in configs)
            return next((value for value in values if isinstance(value, int)), 0)

        return cls(first("decoder_start_token_id", "bos_token_id", "pad_token_id"), first("pad_token_id"))

    def __call__(self, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the sample with what its decoder reads, and without labels.

        A conversation is cut before its first answer: the encoder reads what comes before, the decoder what the
        assistant says. Without labels the decoder reads the encoder's own text.

        Args:
            sample: the model's inputs, with `decoder_input_ids` already, or with `labels` `[B, T']`, or with neither.

        Raises:
            ValueError: there is no text at all.
        """
        inputs = {name: value for name, value in sample.items() if name != "labels"}
        labels, ids = sample.get("labels"), sample.get("input_ids")
        if "decoder_input_ids" in inputs:
            return inputs
        if labels is None and ids is None:
            raise ValueError(
                "it has no text: the model's answer is written by a decoder, so give 'labels' or 'decoder_input_ids'"
            )
        if labels is None:
            assert ids is not None
            mask = sample.get("attention_mask")
            labels = ids if mask is None else ids.masked_fill(~mask.bool(), NO_ANSWER)
        elif ids is not None and _marks(labels, ids):
            begin = max(int((labels[0] != NO_ANSWER).nonzero()[0]), 1)
            inputs |= {name: inputs[name][:, :begin] for name in PER_TOKEN if name in inputs}
            labels = labels[labels != NO_ANSWER].unsqueeze(0)
        return {**inputs, **self._shifted(labels)}

    def _shifted(self, labels: Tensor) -> dict[str, Tensor]:
        """Returns the decoder's inputs that predict `labels`: those before them, after the start token."""
        start = torch.full_like(labels[:, :1], self.start)
        ids = torch.cat([start, labels[:, :-1]], 1)
        mask = ids != NO_ANSWER
        padding = {} if bool(mask.all()) else {"decoder_attention_mask": mask.long()}
        return {"decoder_input_ids": ids.masked_fill(~mask, self.pad), **padding}


def _marks(labels: Tensor, ids: Tensor) -> bool:
    """Whether labels mark the answers in a conversation, instead of being a text of their own."""
    marked = labels != NO_ANSWER
    return labels.shape == ids.shape and len(ids) == 1 and not marked.all() and bool((labels == ids)[marked].all())
