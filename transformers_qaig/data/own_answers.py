"""Answers that a model gives to the questions of its calibration data, drawn from its whole distribution.

They say more of what it does than a few given answers can. Learning end to end reads them (LLM-QAT, arXiv 2305.17888).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from ..execution.offload import copy_to_device, onload
from ..utils.logging import get_logger, tqdm
from ..utils.memory import free_memory
from .calibration_data import CalibrationData
from .tensors import PER_TOKEN, text_name, token_mask

logger = get_logger(__name__)

NUMBER = 7
"""Answers to each question."""
MOST_TOKENS = 256
"""Tokens of an answer."""
ROOM = 1.5
"""Room on a device that the model needs to answer, in sizes of its weights."""

Answer = tuple[Mapping[str, Any], Tensor]
"""The inputs of a sample, and the mask of its answer: bool [1, T]."""
Asked = tuple[int, Mapping[str, Any], Tensor]
"""The same with the number of its question."""


def own_answers(
    model: PreTrainedModel,
    data: CalibrationData,
    questions: Sequence[int],
    picture_tokens: Sequence[int],
    seed: int,
    device: torch.device | str | None,
) -> dict[int, Asked]:
    """Draws what a model may answer to the questions of some samples, `NUMBER` answers each.

    Args:
        model: in full precision.
        data: whose samples they are.
        questions: numbers of samples; each is asked what stands before its first answer.
        picture_tokens: ids of the tokens that stand for patches.
        seed: of the draws.
        device: where to compute; None: where the model is.

    Returns:
        number of the answer, from the number of samples on → number of the question, inputs, mask of the answer. None
        if the device has no room for the model, or the model cannot generate: a warning says so.
    """
    is_moved = device is not None and torch.device(device).type != "cpu"
    if is_moved and free_memory(torch.device(device or "cpu")) < ROOM * model.get_memory_footprint():
        logger.warning("Learning end to end draws no answers from the full model: it does not fit on %s.", device)
        return {}
    found: dict[int, Asked] = {}
    with onload(model, device) if is_moved else nullcontext():
        for s in tqdm(questions, desc="Answers of the full model", unit="question"):
            sample, mask = copy_to_device(data.samples[s], device), data.answer_masks[s]
            try:
                answers = draw_answers(model, sample, mask, picture_tokens, seed + s)
            except Exception as error:  # the model's own code generates, and calibration can do without
                what = f"{type(error).__name__}: {error}"
                logger.warning("Learning end to end draws no answers from the full model. It failed: %s", what)
                return {}
            first = len(data.samples) + s * NUMBER
            found |= {first + i: (s, inputs, mask) for i, (inputs, mask) in enumerate(answers)}
    return found


def draw_answers(
    model: PreTrainedModel, sample: Mapping[str, Any], answer_mask: Tensor, picture_tokens: Sequence[int], seed: int
) -> list[Answer]:
    """Draws `NUMBER` answers to the question of a sample, none longer than its first answer.

    Args:
        model: where it computes. Its own settings of generation are not used.
        sample: the model's inputs on the same device, one conversation.
        answer_mask: bool [1, T] on the CPU, True at the tokens of its answers.
        picture_tokens: ids of the tokens that stand for patches.
        seed: of the draw. The generators of torch are left as they are.

    Returns:
        samples on the CPU with their masks; none if the question cannot be cut out: where a decoder has a text of its
        own, the batch is larger, a picture follows, tokens are padding, or another input has a value a token.
    """
    question, length = _question(sample, answer_mask, picture_tokens)
    if not question:
        return []
    ends = _ends(model)
    how = GenerationConfig(
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        num_return_sequences=NUMBER,
        max_new_tokens=min(length, MOST_TOKENS),
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        suppress_tokens=list(picture_tokens) or None,  # no pixels belong to one that is drawn
    )
    asked = question["input_ids"].shape[1]
    device = question["input_ids"].device
    with torch.random.fork_rng(), torch.no_grad(), _generating(model, how):
        torch.manual_seed(seed)
        all_tokens = {"attention_mask": torch.ones_like(question["input_ids"])}
        rows: Tensor = model.generate(**{**all_tokens, **question})  # type: ignore[operator]
    return [_answered(question, row.to(device), asked, ends) for row in rows]


@contextmanager
def _generating(model: PreTrainedModel, how: GenerationConfig) -> Iterator[None]:
    """Makes `how` a model's settings of generation, within the context.

    Passed along, it would get what it leaves out from the model's own, such as a penalty for repetition.
    """
    before, model.generation_config = model.generation_config, how
    try:
        yield
    finally:
        model.generation_config = before


def _question(
    sample: Mapping[str, Any], answer_mask: Tensor, picture_tokens: Sequence[int]
) -> tuple[dict[str, Any], int]:
    """Returns the inputs before the first answer, and how many tokens that has; no inputs if they cannot be cut."""
    ids, places = sample.get("input_ids"), answer_mask.flatten().nonzero().flatten()
    if text_name(sample) != "input_ids" or ids is None or len(ids) != 1 or not len(places):
        return {}, 0
    first = int(places[0])
    pictures = torch.isin(ids, torch.tensor(list(picture_tokens), dtype=ids.dtype, device=ids.device))
    others = (value for name, value in sample.items() if name not in PER_TOKEN and torch.is_tensor(value))
    aligned = any(value.ndim > 1 and value.shape[:2] == ids.shape for value in others)
    if aligned or bool(pictures[:, first:].any()) or not bool(token_mask(sample)[:, :first].all()):
        return {}, 0
    kept = {name: value for name, value in sample.items() if name != "labels"}
    question = {name: value[:, :first] if name in PER_TOKEN else value for name, value in kept.items()}
    ended = (~answer_mask.flatten()[first:]).nonzero().flatten()
    return question, int(ended[0]) if len(ended) else answer_mask.numel() - first


def _answered(question: Mapping[str, Any], row: Tensor, asked: int, ends: Sequence[int]) -> Answer:
    """Returns the question with an answer, up to the token that ends it."""
    answer = row[asked:]
    stops = torch.isin(answer, torch.tensor(list(ends), dtype=answer.dtype, device=answer.device)).nonzero().flatten()
    answer = answer[: int(stops[0]) + 1] if len(stops) else answer
    ids = torch.cat([question["input_ids"], answer[None].to(question["input_ids"])], 1)
    of_answer = {"attention_mask": 1}  # an answer is text: types are 0
    inputs = {
        name: torch.cat([value, value.new_full((1, len(answer)), of_answer.get(name, 0))], 1)
        if name in PER_TOKEN
        else value
        for name, value in question.items()
    }
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    mask[:, asked:] = True
    whole = {**inputs, "input_ids": ids}
    return {name: value.cpu() if torch.is_tensor(value) else value for name, value in whole.items()}, mask


def _ends(model: PreTrainedModel) -> list[int]:
    """Returns the ids of the tokens that end an answer."""
    settings = (getattr(model, "generation_config", None), model.config, model.config.get_text_config())
    found = next((ends for one in settings if (ends := getattr(one, "eos_token_id", None)) is not None), None)
    return [found] if isinstance(found, int) else list(found or [])
