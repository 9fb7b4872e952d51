"""One calibration sample as tensors: checks a processor's output, and reads masks from it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

NO_ANSWER = -100  # what Transformers writes into labels where there is nothing to predict

PER_TOKEN = ("input_ids", "attention_mask", "labels", "token_type_ids", "mm_token_type_ids")


def as_tensors(
    batch: Mapping[str, Any], vocab_size: int | None = None, *, has_decoder: bool = False
) -> dict[str, torch.Tensor]:
    """Converts a processor's output to CPU tensors; adds the batch axis to entries with one value a token.

    Args:
        batch: names and values of the model's inputs. `None` values are left out.
        vocab_size: token ids must be below; None: not known.
        has_decoder: the answer is a text of its own, for a decoder: labels need not fit the other tokens, and there may
            be none of those.

    Returns:
        `input_ids` (int64 `[B, T]`) and the rest as it is. No entry is empty of tokens.

    Raises:
        ValueError: an entry cannot be a tensor, the ids are no token ids, or a mask or label does not fit them. The
            message names the entry.
    """
    sample = {str(name): _tensor(name, value) for name, value in batch.items() if value is not None}
    if "input_ids" in sample:
        _check_text(sample, vocab_size, [name for name in PER_TOKEN[1:] if name != "labels" or not has_decoder])
    elif not has_decoder:
        raise ValueError(f"the processor gave no 'input_ids', only {sorted(sample)}")
    if "decoder_input_ids" in sample:
        sample["decoder_input_ids"] = _token_ids(sample["decoder_input_ids"], vocab_size, "decoder_input_ids")
    if "labels" in sample:
        sample["labels"] = _labels(sample["labels"], vocab_size)
    return sample


def _check_text(sample: dict[str, torch.Tensor], vocab_size: int | None, others: Sequence[str]) -> None:
    """Adds the batch axis to what has one value a token, and checks that it fits the ids."""
    if sample["input_ids"].ndim == 1:
        for name in PER_TOKEN:
            if name in sample and sample[name].ndim == 1:
                sample[name] = sample[name].unsqueeze(0)
    sample["input_ids"] = _token_ids(sample["input_ids"], vocab_size)
    shape = sample["input_ids"].shape
    for name in others:
        if name in sample and sample[name].shape != shape:
            raise ValueError(f"{name!r} {list(sample[name].shape)} does not fit 'input_ids' {list(shape)}")
    if "attention_mask" in sample:
        _check_mask(sample["attention_mask"])


def text_name(sample: Mapping[str, torch.Tensor]) -> str:
    """Returns the name of the input that the model's answer is predicted in: the decoder's ids, if it has its own."""
    return "decoder_input_ids" if "decoder_input_ids" in sample else "input_ids"


def token_mask(sample: Mapping[str, torch.Tensor], name: str | None = None) -> torch.Tensor:
    """Returns which positions hold real tokens; padding must never count in a statistic.

    Args:
        sample: the model's inputs.
        name: of the ids; by default those of [`text_name`].

    Returns:
        bool `[B, T]`: their attention mask, or all True where the sample has none; `[0, 0]` without such ids.
    """
    name = name or text_name(sample)
    if name not in sample:
        return torch.ones(0, 0, dtype=torch.bool)
    mask = sample.get(name.replace("input_ids", "attention_mask"))
    return torch.ones_like(sample[name], dtype=torch.bool) if mask is None else mask.bool()


def answer_mask(sample: Mapping[str, torch.Tensor], image_tokens: Sequence[int] = ()) -> torch.Tensor:
    """Returns which positions hold a token of an answer, from the sample's labels.

    A sample without labels, or with none set, does not mark its answers. There every real token counts, except
    `image_tokens`.

    Args:
        sample: the model's inputs, with `labels` int64 `[B, T]` or without.
        image_tokens: ids that stand for image patches.

    Returns:
        bool `[B, T]`; False at the first position, which nothing predicts.
    """
    is_token = token_mask(sample)
    if marks_answers(sample) and "labels" in sample:
        mask = is_token & (sample["labels"] != NO_ANSWER)
    else:
        ids = sample[text_name(sample)]
        mask = is_token & ~torch.isin(ids, torch.tensor(list(image_tokens), dtype=torch.long, device=ids.device))
    mask[:, 0] = False
    return mask


def marks_answers(sample: Mapping[str, torch.Tensor]) -> bool:
    """Whether the labels of a sample mark its answers; a decoder's text is nothing else."""
    if text_name(sample) != "input_ids":
        return True
    is_token, labels = token_mask(sample), sample.get("labels")
    return labels is not None and labels.shape == is_token.shape and bool((labels[is_token] != NO_ANSWER).any())


def has_image(sample: Mapping[str, torch.Tensor]) -> bool:
    """Whether a sample has pixels: whatever a model family calls them, only they are floating point."""
    return any(value.is_floating_point() and value.numel() > 0 for value in sample.values())


def pixels_as(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Casts pixels; a row of numbers, such as the seconds between a video's frames, stays exact."""
    return value.to(dtype) if value.is_floating_point() and value.ndim > 1 else value


def _tensor(name: str, value: Any) -> torch.Tensor:
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except Exception as error:  # torch and numpy raise every kind
        raise ValueError(f"{name!r} ({type(value).__name__}) cannot be made a tensor: {error}") from error
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(f"{name!r} must be a plain dense tensor: convert it with to_dense() or dequantize()")
    return tensor


def _token_ids(ids: torch.Tensor, vocab_size: int | None, name: str = "input_ids") -> torch.Tensor:
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(f"{name!r} must be [batch, tokens] and not empty, it is {list(ids.shape)}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name!r} must hold integers, not {ids.dtype}: give the tokenizer's ids")
    ids = ids.long()
    if int(ids.min()) < 0:
        raise ValueError(f"{name!r} holds {int(ids.min())}: token ids are not negative")
    if vocab_size is not None and int(ids.max()) >= vocab_size:
        raise ValueError(
            f"{name!r} holds {int(ids.max())}, and the model's last token id is {vocab_size - 1}: "
            "encode the sample with the model's own processor"
        )
    return ids


def _labels(labels: torch.Tensor, vocab_size: int | None) -> torch.Tensor:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"'labels' must hold token ids or {NO_ANSWER}, not {labels.dtype}")
    labels = labels.long()
    ids = labels[labels != NO_ANSWER]
    if not len(ids):
        return labels
    least, most = int(ids.min()), int(ids.max())
    if least < 0:
        raise ValueError(f"'labels' holds {least}: give a token id, or {NO_ANSWER} where there is nothing to predict")
    if vocab_size is not None and most >= vocab_size:
        raise ValueError(
            f"'labels' holds {most}, and the model's last token id is {vocab_size - 1}: encode the sample with the "
            f"model's own processor, or write {NO_ANSWER} where there is nothing to predict"
        )
    return labels


def _check_mask(mask: torch.Tensor) -> None:
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("'attention_mask' must hold 1 at tokens and 0 at padding, and nothing else")
    empty = ~mask.bool().any(dim=1)
    if empty.any():
        row = int(empty.nonzero()[0])
        raise ValueError(f"'attention_mask' leaves no token in row {row}: leave the row out")
