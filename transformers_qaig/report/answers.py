"""Compares two models' answers: what each predicts at every token, and the questions on which they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import log_softmax

from ..data.views import thumbnail
from .questions import Question
from .statistics import AnswerStatistics

LONGEST = 2000
"""Characters of a question or an answer that are shown."""


@dataclass(frozen=True)
class AnswerDetails:
    """One model's view of one answer, given the question and the answer's tokens so far.

    Attributes:
        choices: its first choice at each of the answer's tokens, int64 `[A]`.
        choice_probabilities: of these, fp32 `[A]`.
        probabilities: of the answer's own tokens, fp32 `[A]`.
    """

    choices: Tensor
    choice_probabilities: Tensor
    probabilities: Tensor

    @classmethod
    def of(cls, logits: Tensor, answer: Tensor) -> AnswerDetails:
        """Reads logits `[A, V]` at the tokens of an answer."""
        log_p = log_softmax(logits.float(), dim=-1)
        most, choices = log_p.max(dim=-1)
        own = log_p.gather(1, answer.to(log_p.device)[:, None])[:, 0]
        return cls(choices.cpu(), most.exp().cpu(), own.exp().cpu())

    def predicted_tokens(self, answer: Tensor) -> Tensor:
        """Returns the answer up to the model's first other choice, and that choice: what it would begin to say."""
        differs = (self.choices != answer.cpu()).nonzero()
        if not len(differs):
            return self.choices
        first = int(differs[0])
        return torch.cat([answer.cpu()[:first], self.choices[first : first + 1]])


@dataclass(frozen=True)
class Change:
    """One question that two models see differently.

    Attributes:
        conversation: its index in the data.
        task: its name, or "".
        kind: `"lost"`: only the reference gives the answer exactly; `"gained"`: only the model; `"other"`: neither, or
            both, and their first choices differ somewhere.
        question: its text.
        expected: the answer in the data.
        reference_answer, answer: what each begins to say; a beginning ends at its first other word with "…".
        reference_probability, probability: of the expected answer as a whole.
        reference_choice, choice: the token where the two differ first, each with its probability by that model.
        kl: mean over the answer's tokens, in nats.
        pictures: small JPEGs in base64.
    """

    conversation: int
    task: str
    kind: str
    question: str
    expected: str
    reference_answer: str
    answer: str
    reference_probability: float
    probability: float
    reference_choice: tuple[str, float]
    choice: tuple[str, float]
    kl: float
    pictures: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the change as JSON can hold it."""
        return asdict(self)


def changes(
    processor: Any,
    questions: Sequence[Question],
    figures: tuple[AnswerStatistics, AnswerStatistics],
    details: tuple[Sequence[AnswerDetails], Sequence[AnswerDetails]],
    most: int,
) -> tuple[dict[str, int], list[Change]]:
    """Finds the questions on which two models differ: those that were lost first, then by KL.

    Args:
        processor: decodes tokens.
        questions: that both were measured on.
        figures: of the reference and of the model.
        details: of both, in the same order.
        most: how many to describe.

    Returns:
        how many there are of each kind, and the first `most`.
    """
    (reference, model), (theirs, ours) = figures, details
    kl = np.zeros(len(questions)) if model.kl is None else model.kl
    found: dict[str, list[int]] = {"lost": [], "gained": [], "other": []}
    for i, (a, b) in enumerate(zip(theirs, ours)):
        if bool(reference.exact[i]) != bool(model.exact[i]):
            found["lost" if reference.exact[i] else "gained"].append(i)
        elif not torch.equal(a.choices, b.choices):
            found["other"].append(i)
    described: list[Change] = []
    for kind, indices in found.items():
        for i in sorted(indices, key=lambda i: -kl[i]):
            if len(described) < most:
                described.append(_change(processor, questions[i], kind, theirs[i], ours[i], float(kl[i])))
    return {kind: len(indices) for kind, indices in found.items()}, described


def _change(
    processor: Any, question: Question, kind: str, theirs: AnswerDetails, ours: AnswerDetails, kl: float
) -> Change:
    tokenizer = getattr(processor, "tokenizer", processor)

    def text(tokens: Tensor) -> str:
        return str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True)).strip()[:LONGEST]

    def predicted_text(details: AnswerDetails) -> str:
        return text(details.predicted_tokens(question.answer)) + (
            "" if torch.equal(details.choices, question.answer.cpu()) else " …"
        )

    differs = (theirs.choices != ours.choices).nonzero()
    at = int(differs[0]) if len(differs) else 0
    return Change(
        question.conversation,
        question.task,
        kind,
        "\n".join(_texts(question.prompt))[:LONGEST],
        text(question.answer),
        predicted_text(theirs),
        predicted_text(ours),
        float(theirs.probabilities.double().prod()),
        float(ours.probabilities.double().prod()),
        (str(tokenizer.decode([int(theirs.choices[at])])), float(theirs.choice_probabilities[at])),
        (str(tokenizer.decode([int(ours.choices[at])])), float(ours.choice_probabilities[at])),
        kl,
        tuple(small for picture in _pictures(question.prompt) if (small := thumbnail(picture))),
    )


def _parts(prompt: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for message in prompt:
        content = message.get("content")
        if message.get("role") == "user":
            yield from [{"type": "text", "text": content}] if isinstance(content, str) else content or ()


def _texts(prompt: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(part.get("text", "")) for part in _parts(prompt) if part.get("type") == "text"]


def _pictures(prompt: Sequence[Mapping[str, Any]]) -> list[Image.Image]:
    shown = (part.get("image") for part in _parts(prompt) if part.get("type") == "image")
    return [picture for picture in shown if isinstance(picture, Image.Image)][:4]


def change_lines(counts: Mapping[str, int], described: Sequence[Change]) -> str:
    """Formats changes as text: a line or two for each."""
    lines = [f"changed: {counts['lost']} lost, {counts['gained']} gained, {counts['other']} with other first choices"]
    for change in described:
        where = f"conversation {change.conversation}" + (f", {change.task}" if change.task else "")
        lines.append(f"  {change.kind}, {where}: {_short(change.question)} → {_short(change.expected)}")
        lines.append(
            f"    reference {_short(change.reference_answer)!r} (p {change.reference_probability:.3f}), "
            f"model {_short(change.answer)!r} (p {change.probability:.3f})"
        )
    return "\n".join(lines)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:79]}…"
