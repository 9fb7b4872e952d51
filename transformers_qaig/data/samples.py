"""Loads calibration data of any form as a list of model inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..execution.exclusions import Sample
from ..utils.logging import get_logger, tqdm
from .columns import find_columns
from .encode import encode, reads_video
from .messages import ChatTools, Conversation, to_conversation, tools_of
from .model_inputs import ModelInputs
from .preview import preview
from .shorten import SampleLimits
from .sources import choose_records, open_records
from .template import ProcessorError
from .tensors import answer_mask, as_tensors, has_image, token_mask
from .views import SampleViews

__all__ = ["answer_mask", "are_encoded", "load_samples", "token_mask"]

logger = get_logger(__name__)

SHOWN = 10  # samples that a warning names
ANY_MODEL = ModelInputs()
"""A model that takes images, and of which nothing else is known."""


def load_samples(
    dataset: Any,
    processor: Any,
    *,
    num_samples: int,
    seed: int,
    inputs: ModelInputs = ANY_MODEL,
    columns: Mapping[str, str] | None = None,
    max_pixels: int | None = None,
    max_length: int | None = None,
    token: str | bool | None = None,
    with_labels: bool = False,
    views: SampleViews | None = None,
) -> list[Sample]:
    """Loads calibration samples as the model's inputs.

    Args:
        dataset: one of

            - `None`: the bundled default set (image + text, works offline);
            - conversations: each a list of chat messages, a dict `{"messages": ..., "images": ..., "tools": ...}`, a
              dict like `{"image": ..., "question": ..., "answer": ...}` or TRL's `prompt` with `completion` or
              `chosen`; images are PIL images, paths, URLs, `data:` URLs or arrays, videos what
              [`video.open_video`][transformers_qaig.data.video.open_video] takes. A list, any sequence, any iterable
              (consumed once), a table's rows, a `datasets.Dataset` or `IterableDataset`; of a `DatasetDict` its only
              split, else `train`;
            - processor outputs: dicts with `input_ids`; padded batches keep their `attention_mask`;
            - a `str`: a `.json`/`.jsonl` file of such records, or a set on the Hub: `"org/name"`,
              `"org/name:split"`, `"org/name:config:split"` (streamed; split `train` unless said).
        processor: the model's processor; None will do for processor outputs.
        num_samples: how many samples to keep. More are shuffled by `seed` and cut; fewer are all used.
        seed: seed of the choice and its order.
        inputs: what the model takes; by default images and any number of tokens.
        columns: what the records call their `messages`, `image`, `video`, `prompt`, `response`, `context`, `choices`,
            `system`, `tools` (default: found by name).
        max_pixels: larger images and frames are scaled down to this many pixels (memory grows with them). Those in
            processor outputs are not.
        max_length: by default what the model can take. Conversations with more tokens lose video frames and parts of
            their texts. Those that are longer without them are left out, and so are longer processor outputs.
        token: for a gated set on the Hub.
        with_labels: mark the assistant's answers in `labels`. Processor outputs keep the labels they have.
        views: collects the samples for people to look at.

    Returns:
        At most `num_samples` dicts of CPU tensors with the names that the model's forward takes.

    Raises:
        ValueError: no sample is left, or one cannot be used (the message has its index, the cause and what to do).
        TypeError: `dataset` is none of the forms above.
        ImportError: `dataset` names a Hub set and `datasets` is not installed.
    """
    for name, value in (("num_samples", num_samples), ("max_pixels", max_pixels), ("max_length", max_length)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, it is {value}")
    most = min((length for length in (max_length, inputs.context) if length is not None), default=None)
    limits = SampleLimits(max_pixels, most, is_context=most != max_length)
    records, base_dir = open_records(
        dataset,
        with_images=inputs.has_images,
        token=token,
        with_videos=inputs.has_images and dataset is None and reads_video(processor),
    )
    encoder = _Encoder(processor, columns, base_dir, limits, with_labels, inputs)
    samples: list[Sample] = []
    total = min(num_samples, len(records)) if hasattr(records, "__len__") else num_samples
    with tqdm(total=total, desc="Encoding samples", unit="sample") as bar:
        for index, record in choose_records(records, num_samples, seed, keep_rest=most is not None):
            sample = encoder(index, record)
            if sample is None:
                continue
            samples.append(Sample(sample, index))
            if views is not None:
                views.add(index, sample, processor, encoder.conversation)
            bar.update()
            if len(samples) == num_samples:
                break
    encoder.warn()
    limits.warn(len(samples) + limits.left_out)
    _report(samples, processor, num_samples, limits, inputs.has_images)
    return samples


def are_encoded(dataset: Any) -> bool:
    """Whether `dataset` is a list of processor outputs, which need no processor any more."""
    return isinstance(dataset, (list, tuple)) and all(_is_encoded(record) for record in dataset)


def _is_encoded(record: Any) -> bool:
    if not isinstance(record, Mapping):
        return False
    pictures = ("pixel_values", "flattened_patches")  # with the decoder's text alone
    return "input_ids" in record or (
        ("decoder_input_ids" in record or "labels" in record) and any(name in record for name in pictures)
    )


def _length(sample: Mapping[str, torch.Tensor]) -> int:
    """Returns the tokens of the longest text: the encoder's or the decoder's."""
    return max(sample[name].shape[1] for name in ("input_ids", "decoder_input_ids") if name in sample)


@dataclass
class _Encoder:
    """Converts records to samples; its errors name the record."""

    processor: Any
    columns: Mapping[str, str] | None
    base_dir: Path | None
    limits: SampleLimits
    with_labels: bool
    inputs: ModelInputs
    notes: dict[str, list[int]] = field(default_factory=dict)  # what was dropped, and of which samples
    conversation: Conversation | None = None  # the last one that was encoded; None for a processor's output

    def __call__(self, index: int, record: Any) -> dict[str, torch.Tensor] | None:
        """Converts one record; returns None for one that is too long."""
        self.conversation = None
        if _is_encoded(record):
            try:
                sample = self._for_decoder(
                    as_tensors(record, self.inputs.vocab_size, has_decoder=self.inputs.decoder is not None)
                )
            except ValueError as error:
                raise ValueError(f"calibration sample {index}, a processor output, cannot be used: {error}") from error
            self.limits.encoded += has_image(sample)
            if self.limits.exceeds(_length(sample)):
                self.limits.leave_out(_length(sample))
                return None
            return sample
        if self.columns is not None and isinstance(record, Mapping):
            find_columns(
                record, self.columns
            )  # a wrong column map is no fault of this sample: its message needs no index
        try:
            self.conversation = self.limits.shrink(to_conversation(record, self.columns, self.base_dir))
            return self._encode_within_limits(index, self.conversation, tools_of(record, self.columns))
        except ProcessorError as error:
            raise ValueError(
                f"calibration sample {index} was refused by {error}. Remove or mend this sample, check that the "
                "processor belongs to the model, or pass processor outputs as the dataset"
            ) from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"calibration sample {index} is not usable: {error}") from error
        except Exception as error:  # a record may be any object
            raise ValueError(f"calibration sample {index} is not usable ({type(error).__name__}: {error})") from error

    def _encode_within_limits(
        self, index: int, conversation: Conversation, tools: ChatTools
    ) -> dict[str, torch.Tensor] | None:
        def encoded(conversation: Conversation, with_labels: bool) -> dict[str, torch.Tensor]:
            sample = encode(
                self.processor,
                conversation,
                tools,
                with_labels=with_labels,
                vocab_size=self.inputs.vocab_size,
                warn=lambda note: self.notes.setdefault(note, []).append(index),
            )
            return self._for_decoder(sample)

        sample = encoded(conversation, self.with_labels)
        if not self.limits.exceeds(_length(sample)):
            return sample
        has_decoder = self.inputs.decoder is not None  # its text is the labels
        try:
            shorter = self.limits.shorten(
                conversation, _length(sample), lambda one: _length(encoded(one, self.with_labels and has_decoder))
            )
            return None if shorter is None else encoded(shorter, self.with_labels)
        except ValueError:  # the chat template refuses what would be left of it
            self.limits.leave_out(_length(sample))
            return None

    def _for_decoder(self, sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return sample if self.inputs.decoder is None else self.inputs.decoder(sample)

    def warn(self) -> None:
        """Warns once of each thing that the chat template dropped."""
        for note, indices in self.notes.items():
            which = sorted(set(indices))
            more = f" and {len(which) - SHOWN} more" if len(which) > SHOWN else ""
            logger.warning("%s, in calibration samples %s%s", note, ", ".join(map(str, which[:SHOWN])), more)


def _report(
    samples: Sequence[Sample],
    processor: Any,
    num_samples: int,
    limits: SampleLimits,
    has_images: bool,
) -> None:
    """Logs what was loaded, with one decoded sample; warns about a set that would harm the model."""
    if not samples:
        left_out = f"all {limits.left_out} are longer than {limits.max_length} tokens"
        why = left_out if limits.left_out else "the dataset is empty"
        raise ValueError(f"no calibration sample: {why}")
    with_image = sum(has_image(sample) for sample in samples)
    tokens = sum(int(token_mask(sample).sum()) for sample in samples)
    short = f" ({num_samples} were asked for)" if len(samples) < num_samples else ""
    logger.info(
        "calibration: %d samples%s, %d with an image or a video, %d tokens", len(samples), short, with_image, tokens
    )
    logger.info("calibration sample: %s", preview(processor, samples[0]))
    if has_images and not with_image:
        logger.warning(
            "The calibration data has no image and no video. A vision-language model then never sees its vision tokens "
            "while it is quantized: their statistics, which differ from the text's, are missing, and answers about "
            "images get worse. Give image + text conversations, or leave dataset out to use the bundled default set."
        )
