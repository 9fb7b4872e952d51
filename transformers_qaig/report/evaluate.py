"""Measures how much of a model's answers survives: KL to a reference, agreement, likelihood, exact match.

Everything is teacher-forced: one forward pass over question and answer, read at the answer's positions.

    original = answer_statistics(model, processor, conversations)
    packed = answer_statistics(quantized, processor, conversations, reference=model)
    rounded = answer_statistics(rtn, processor, conversations, reference=model)
    packed.summary()["kl"]                      # {"mean": …, "standard_error": …}, nats per answer token
    paired_ratio(packed, rounded)               # mean KL of one over the other, with its 95 % interval

`transformers_qaig.report.comparison` makes JSON, a table and a plot of several such statistics.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from ..utils.logging import tqdm
from .answers import AnswerDetails
from .batches import KeptLogits, batches_of, forward
from .questions import Message, Question, encode_questions
from .statistics import AnswerStatistics, paired_ratio

ROWS = 64
"""Tokens of an answer whose distributions are in memory at once."""

__all__ = [
    "AnswerStatistics",
    "Question",
    "answer_logits",
    "answer_statistics",
    "encode_questions",
    "paired_ratio",
]


def answer_logits(
    model: torch.nn.Module, questions: Sequence[Question], *, batch_size: int | None = None
) -> Sequence[Tensor]:
    """Computes the logits that predict each answer's tokens: ``[A, V]`` per question, on the CPU, in the model's dtype.

    Pass them as ``reference=`` when several models are compared with one. They take A·V values per question: above
    2 GiB in all they lie in a temporary file.

    Args:
        model: a vision-language (or language) model with logits.
        questions: from `encode_questions`.
        batch_size: questions per forward pass; by default as many as memory has room for, at most 32.
    """
    logits = KeptLogits(len(questions))
    for batch in tqdm(batches_of(model, questions, batch_size), desc="Predictions", unit="batch"):
        for i, rows in zip(batch, forward(model, [questions[i] for i in batch])):
            logits[i] = rows
    return logits


def answer_statistics(
    model: torch.nn.Module | Sequence[Tensor],
    processor: Any,
    conversations: Iterable[Sequence[Message] | Mapping[str, Any]] | Sequence[Question],
    *,
    reference: torch.nn.Module | Sequence[Tensor] | None = None,
    batch_size: int | None = None,
    details: list[AnswerDetails] | None = None,
) -> AnswerStatistics:
    """Computes teacher-forced statistics of every answer in ``conversations``.

    Questions whose tensors have equal shapes share a batch, so nothing is ever padded.

    Args:
        model: a vision-language (or language) model with logits, or its `answer_logits` on the same questions.
        processor: its processor; unused when ``conversations`` is already what `encode_questions` returns.
        conversations: chat messages or records (see `encode_questions`), a stream of them too; or encoded questions.
        reference: the model to compare with, or its `answer_logits` on the same questions.
        batch_size: questions per forward pass; by default as many as memory has room for, at most 32.
        details: gets what the model says at each token of each answer.

    Raises:
        ValueError: no question, ``batch_size`` below 1, or logits that do not fit the questions.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    questions = _as_questions(model, processor, conversations)
    for name, given in (("model", model), ("reference", reference)):
        if given is not None and not isinstance(given, torch.nn.Module) and len(given) != len(questions):
            raise ValueError(f"{name} holds logits of {len(given)} questions, but there are {len(questions)}.")

    columns = np.full((4, len(questions)), np.nan)
    said: dict[int, AnswerDetails] = {}
    for batch in tqdm(batches_of(model, questions, batch_size), desc="Answers", unit="batch"):
        logits = _logits_of(model, questions, batch)
        expected = [None] * len(batch) if reference is None else _logits_of(reference, questions, batch)
        for i, rows, target in zip(batch, logits, expected):
            columns[:, i] = _answer_figures(rows, questions[i].answer, target)
            if details is not None:
                said[i] = AnswerDetails.of(rows, questions[i].answer)
    if details is not None:
        details += [said[i] for i in range(len(questions))]

    return AnswerStatistics(
        exact=columns[0].astype(bool),
        nll=columns[1],
        kl=None if reference is None else columns[2],
        agreement=None if reference is None else columns[3],
        tokens=np.array([question.stop - question.start for question in questions]),
        task=np.array([question.task for question in questions]),
        conversation=np.array([question.conversation for question in questions]),
    )


def _as_questions(model: Any, processor: Any, conversations: Iterable[Any]) -> list[Question]:
    if isinstance(conversations, Sequence) and conversations and isinstance(conversations[0], Question):
        return list(conversations)
    generation = getattr(model, "generation_config", None)
    eos = generation.eos_token_id if generation is not None else None
    ids = eos if isinstance(eos, list) else [eos]
    questions = encode_questions(processor, conversations, [token for token in ids if token is not None])
    if not questions:
        raise ValueError("conversations has no answer to check: it is empty, or every answer has weight 0.")
    return questions


def _logits_of(
    model: torch.nn.Module | Sequence[Tensor], questions: Sequence[Question], batch: list[int]
) -> Sequence[Tensor]:
    """Returns logits ``[A, V]`` of the questions in ``batch``, computed or looked up."""
    if isinstance(model, torch.nn.Module):
        return forward(model, [questions[i] for i in batch])
    return [model[i] for i in batch]


def _answer_figures(logits: Tensor, answer: Tensor, reference: Tensor | None) -> tuple[float, float, float, float]:
    """Computes (exact, NLL, KL(reference ‖ model), agreement) of one answer from logits ``[A, V]``.

    In float64 where the device has it: a KL of 1e-6 is a sum of terms that are larger and cancel.
    """
    if len(logits) != len(answer):
        raise ValueError(f"the model's logits are {tuple(logits.shape)}, but the answer has {len(answer)} tokens.")
    if reference is not None and reference.shape != logits.shape:
        raise ValueError(f"reference logits are {tuple(reference.shape)}, the model's are {tuple(logits.shape)}.")
    device = logits.device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    right, sums = 0, [0.0, 0.0, 0.0]
    for start in range(0, len(answer), ROWS):
        rows = slice(start, start + ROWS)
        log_p, expected = log_softmax(logits[rows].to(dtype), dim=-1), answer[rows].to(device)
        first = log_p.argmax(dim=-1)
        right += int((first == expected).sum())
        sums[0] -= log_p.gather(1, expected[:, None]).sum().item()
        if reference is not None:
            log_q = log_softmax(reference[rows].to(device, dtype), dim=-1)
            # 0·(−inf) is 0 here: a token with probability 0 in the reference costs nothing.
            sums[1] += torch.where(log_q.isneginf(), 0.0, log_q.exp() * (log_q - log_p)).sum().item()
            sums[2] += (first == log_q.argmax(dim=-1)).sum().item()
    nll, kl, agreement = (value / len(answer) for value in sums)
    return float(right == len(answer)), nll, *((np.nan, np.nan) if reference is None else (kl, agreement))
