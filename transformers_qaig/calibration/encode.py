"""One conversation -> the model's inputs, through the model's own processor."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .messages import Conversation, images_of, text_of

logger = logging.getLogger("transformers_qaig")

PREVIEW_CHARS = 2000
COLLAPSE_FROM = 4  # shorter runs of one token are ordinary text ("...", a table's rule)
NO_ANSWER = -100  # what Transformers writes into labels where there is nothing to predict


def encode(processor: Any, conversation: Conversation, *, with_labels: bool = False) -> dict[str, torch.Tensor]:
    """
    Tokenises a whole conversation, the assistant's answers included, and its images.

    Args:
        processor: the model's processor (a tokenizer will do for text).
        conversation: as `messages.to_conversation` returns it.
        with_labels: add `labels` `[1, T]`: the ids of the assistant's answers, `NO_ANSWER` elsewhere. Each answer costs
            the processor two more runs.

    Returns:
        The processor's output with batch size 1, on the CPU, under the names that the model's forward takes.

    Raises:
        ValueError: the processor has neither a chat template nor an image token.
        Exception: whatever the processor raises.
    """
    if getattr(processor, "chat_template", None) is None:
        return as_tensors(_encode_without_template(processor, conversation))
    form = _form_for_template(processor, conversation)
    sample = _apply_template(processor, form)
    if with_labels:
        sample["labels"] = _labels(processor, form, sample["input_ids"])
    return sample


def answer_mask(sample: Mapping[str, torch.Tensor], image_tokens: Sequence[int] = ()) -> torch.Tensor:
    """
    Which positions hold a token of an answer, from the sample's labels. A sample without labels, or with none set,
    has no answer told apart: there every real token but the `image_tokens` counts.

    Returns:
        `torch.BoolTensor` `[B, T]`; False at the first position, which nothing predicts.
    """
    real, labels = token_mask(sample), sample.get("labels")
    if labels is not None and labels.shape == real.shape and bool((labels[real] != NO_ANSWER).any()):
        mask = real & (labels != NO_ANSWER)
    else:
        ids = sample["input_ids"]
        mask = real & ~torch.isin(ids, torch.tensor(list(image_tokens), dtype=torch.long, device=ids.device))
    mask[:, 0] = False
    return mask


def as_tensors(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """
    A processor's output as CPU tensors; `input_ids` and `attention_mask` of one unbatched sample get their batch axis.

    Raises:
        ValueError: an entry cannot be a tensor, or the mask does not fit the ids.
    """
    sample: dict[str, torch.Tensor] = {}
    for name, value in batch.items():
        if value is None:
            continue
        try:
            sample[name] = torch.as_tensor(value).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name!r} ({type(value).__name__}) cannot be made a tensor: {error}") from error
    if "input_ids" not in sample:
        raise ValueError(f"the processor gave no 'input_ids', only {sorted(sample)}")
    if sample["input_ids"].ndim == 1:
        for name in ("input_ids", "attention_mask", "labels"):
            if name in sample and sample[name].ndim == 1:
                sample[name] = sample[name].unsqueeze(0)
    shape = sample["input_ids"].shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"'input_ids' must be [batch, tokens] and not empty, it is {list(shape)}")
    mask = sample.get("attention_mask")
    if mask is not None and mask.shape != shape:
        raise ValueError(f"'attention_mask' {list(mask.shape)} does not fit 'input_ids' {list(shape)}")
    return sample


def token_mask(sample: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """
    Which positions hold real tokens; padding must never count in a statistic.

    Returns:
        `torch.BoolTensor` `[B, T]`: the attention mask, or all True where the sample has none.
    """
    mask = sample.get("attention_mask")
    return torch.ones_like(sample["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def has_image(sample: Mapping[str, torch.Tensor]) -> bool:
    """Whether a sample brings pixels: whatever a family calls them, only they are floating point."""
    return any(value.is_floating_point() and value.numel() > 0 for value in sample.values())


def preview(processor: Any, sample: Mapping[str, torch.Tensor]) -> str:
    """
    The first row of a sample, padding left out: its text, runs of one token collapsed (`<image>×64`); its ids where
    nothing decodes them.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    ids = sample["input_ids"][0][token_mask(sample)[0]].tolist()
    if not hasattr(tokenizer, "decode"):
        return str(ids[:PREVIEW_CHARS])
    pieces: list[str] = []
    plain: list[int] = []
    for token, run in itertools.groupby(ids):
        count = len(list(run))
        if count < COLLAPSE_FROM:
            plain += [token] * count
            continue
        pieces += [tokenizer.decode(plain), f"{tokenizer.decode([token])}×{count}"]
        plain = []
    text = "".join([*pieces, tokenizer.decode(plain)])
    half = PREVIEW_CHARS // 2
    return text if len(text) <= PREVIEW_CHARS else f"{text[:half]} […] {text[-half:]}"


def _apply_template(processor: Any, form: Conversation, add_generation_prompt: bool = False) -> dict[str, torch.Tensor]:
    return as_tensors(
        processor.apply_chat_template(
            form,
            add_generation_prompt=add_generation_prompt,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    )


def _labels(processor: Any, form: Conversation, ids: torch.Tensor) -> torch.Tensor:
    """
    The answers' ids in `ids` `[1, T]`, else `NO_ANSWER`. An answer begins where the conversation so far, with the
    prompt to answer, parts from the whole; it ends where the conversation so far, with the answer, does.
    """
    labels = torch.full_like(ids, NO_ANSWER)
    for index, message in enumerate(form):
        if message["role"] == "assistant" and index > 0:
            asked = _apply_template(processor, form[:index], add_generation_prompt=True)["input_ids"]
            answered = _apply_template(processor, form[: index + 1])["input_ids"]
            answer = slice(_shared(asked[0], ids[0]), _shared(answered[0], ids[0]))
            labels[0, answer] = ids[0, answer]
    return labels


def _shared(a: torch.Tensor, b: torch.Tensor) -> int:
    """Length of the longest common beginning of two rows of ids."""
    length = min(len(a), len(b))
    differs = (a[:length] != b[:length]).nonzero()
    return int(differs[0]) if len(differs) else length


def _form_for_template(processor: Any, conversation: Conversation) -> Conversation:
    """
    The conversation in the form that this chat template renders in full.

    Templates disagree: some read a list of parts only (and skip a plain string without a word), some read plain
    strings where there is no image. So both are rendered and the one that keeps more of the text is taken.
    """
    texts = [text.strip() for text in text_of(conversation)]
    best, kept, failure = None, -1, None
    for form in (conversation, _plain_strings(conversation)):
        try:
            rendered = processor.apply_chat_template(form, add_generation_prompt=False, tokenize=False)
        except Exception as error:  # jinja errors and whatever a template raises by itself
            failure = failure or error
            continue
        count = sum(text in rendered for text in texts)
        if count > kept:
            best, kept = form, count
        if kept == len(texts):
            break
    if best is None:
        assert failure is not None
        raise failure
    if kept < len(texts):
        logger.warning("the chat template leaves out %d of %d texts of a conversation", len(texts) - kept, len(texts))
    return best


def _plain_strings(conversation: Conversation) -> Conversation:
    """Messages without an image, with their parts joined to one string."""
    return [
        message
        if any(part["type"] == "image" for part in message["content"])
        else {**message, "content": "\n".join(part["text"] for part in message["content"])}
        for message in conversation
    ]


def _encode_without_template(processor: Any, conversation: Conversation) -> Mapping[str, Any]:
    images = images_of(conversation)
    text = "\n".join(text_of(conversation))
    if not images:
        return processor(text=text, return_tensors="pt")
    token = getattr(processor, "image_token", None) or getattr(
        getattr(processor, "tokenizer", None), "image_token", None
    )
    if token is None:
        raise ValueError(
            f"{type(processor).__name__} has neither a chat template nor an image token: set processor.chat_template, "
            "or give processor outputs (a list of dicts with 'input_ids' and the image tensors) as the dataset"
        )
    return processor(images=images, text=f"{token}" * len(images) + text, return_tensors="pt")
