"""Encodes one conversation as the model's inputs, with the model's own processor."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .default_set import load_default_set
from .labels import answer_labels
from .messages import ChatTools, Conversation, images_of, text_of, to_conversation, videos_of
from .mixed import check_pixels
from .template import ProcessorError, form_for_template, logger, render
from .tensors import PER_TOKEN, as_tensors


def encode(
    processor: Any,
    conversation: Conversation,
    tools: ChatTools = None,
    *,
    with_labels: bool = False,
    vocab_size: int | None = None,
    warn: Callable[[str], None] = logger.warning,
) -> dict[str, torch.Tensor]:
    """Tokenises a whole conversation, the assistant's answers included, and its images and videos.

    Args:
        processor: the model's processor (a tokenizer will do for text).
        conversation: as `messages.to_conversation` returns it.
        tools: as `messages.tools_of` returns them.
        with_labels: add `labels` `[1, T]`: the ids of the assistant's answers, `NO_ANSWER` elsewhere. Each answer costs
            the processor two more runs.
        vocab_size: the model takes token ids below; None: not known.
        warn: called with a sentence for whatever the chat template drops of the user, the system or the tools.

    Returns:
        The processor's output with batch size 1, on the CPU, under the names that the model's forward takes.

    Raises:
        ValueError: the processor has neither a chat template nor an image token, drops the images or what the assistant
            says, or takes no video and the conversation has one.
        ProcessorError: the processor raised something.
    """
    if videos_of(conversation) and not takes_video(processor):
        raise ValueError(
            f"{type(processor).__name__} takes no video: give chosen frames as parts of type 'image', or leave the "
            "sample out"
        )
    if getattr(processor, "chat_template", None) is None:
        sample = as_tensors(_encode_without_template(processor, conversation, tools), vocab_size)
        _check_pictures(processor, conversation, sample)
        return sample
    form = form_for_template(processor, conversation, tools, warn)
    encoded = render(processor, form, tools, tokenize=True, return_dict=True, return_tensors="pt")
    sample = as_tensors(encoded, vocab_size)
    _check_pictures(processor, conversation, sample)
    check_pixels(processor, form, tools, sample)
    if with_labels:
        sample["labels"] = answer_labels(processor, form, tools, sample["input_ids"])
    return sample


def takes_video(processor: Any) -> bool:
    """Whether a processor has what encodes videos, and a chat template that may place them."""
    return all(getattr(processor, name, None) is not None for name in ("video_processor", "chat_template"))


def reads_video(processor: Any) -> bool:
    """Tries whether a processor encodes a bundled clip; warns if it should and does not."""
    if not takes_video(processor):
        return False
    *_, conversation = load_default_set(with_videos=True)
    try:
        encode(processor, to_conversation(conversation))
    except ValueError as error:
        logger.warning("The bundled clips are left out, because a clip was refused: %s", error)
        return False
    return True


def _check_pictures(processor: Any, conversation: Conversation, sample: Mapping[str, torch.Tensor]) -> None:
    """Raises `ValueError` if nothing but text became of the images."""
    if images_of(conversation) and all(name in PER_TOKEN for name in sample):
        raise ValueError(
            f"{type(processor).__name__} makes no pixels of the sample's images: give the model's processor "
            "with CalibrationConfig(processor=...), or, if the model has none, records without images"
        )


def _encode_without_template(processor: Any, conversation: Conversation, tools: ChatTools) -> Mapping[str, Any]:
    if tools or any(turn.get("tool_calls") or turn.get("reasoning_content") for turn in conversation):
        raise ValueError(
            f"the sample has tools or reasoning, and {type(processor).__name__} has no chat template to write them: "
            "set processor.chat_template, or leave this sample out"
        )
    images = images_of(conversation)
    text = "\n".join(text_of(conversation))
    if not images:
        return _call(processor, text=text)
    token = getattr(processor, "image_token", None) or getattr(
        getattr(processor, "tokenizer", None), "image_token", None
    )
    if token is None:
        raise ValueError(
            f"{type(processor).__name__} has neither a chat template nor an image token: set processor.chat_template, "
            "or give processor outputs (a list of dicts with 'input_ids' and the image tensors) as the dataset"
        )
    return _call(processor, images=images, text=f"{token}" * len(images) + text)


def _call(processor: Any, **inputs: Any) -> Any:
    try:
        return processor(**inputs, return_tensors="pt")
    except Exception as error:  # processors raise every kind
        raise ProcessorError(processor, error) from error
