"""Figures per answer, and statistics of them: means, standard errors, paired comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
LEAST = 30
"""Conversations below which a bootstrap tells no standard error and no interval: it would be of those few alone."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class AnswerStatistics:
    """One entry per question, so that two models can be compared question by question.

    Attributes:
        exact: bool ``[Q]``, a share once `pooled`: every answer token is the model's first choice. For an answer that
            greedy decoding would produce this is the same event as "greedy decoding gives exactly this answer".
        nll: float64 ``[Q]``: mean negative log-likelihood of the answer's tokens, in nats.
        kl: float64 ``[Q]``: mean over the answer's tokens of KL(reference ‖ model) over the whole vocabulary, in nats;
            None without a reference.
        agreement: float64 ``[Q]``: share of answer positions where model and reference rank the same token first;
            None without a reference.
        tokens: int64 ``[Q]``: answer tokens of each question.
        task: str ``[Q]``.
        conversation: int64 ``[Q]``: questions with the same number share their picture.
    """

    exact: Array
    nll: Array
    kl: Array | None
    agreement: Array | None
    tokens: Array
    task: Array
    conversation: Array

    def __len__(self) -> int:
        return len(self.exact)

    def select(self, mask: Array) -> "AnswerStatistics":
        """Returns the questions where ``mask`` (bool ``[Q]``) holds."""
        chosen: dict[str, Any] = {name: None if value is None else value[mask] for name, value in vars(self).items()}
        return AnswerStatistics(**chosen)

    def summary(self, seed: int = 0) -> dict[str, Any]:
        """Computes means with bootstrap standard errors, over all questions and (under ``"tasks"``) per task.

        ``exact_match`` is a mean over questions; ``kl``, ``agreement`` and ``nll`` are means over answer tokens, and
        ``perplexity`` is exp of the mean ``nll``. The bootstrap resamples whole conversations. Of fewer than
        [`LEAST`] conversations the standard errors are None.
        """
        figures = self._figures(seed)
        tasks = sorted(set(self.task.tolist()) - {""})
        figures["tasks"] = {task: self.select(self.task == task)._figures(seed) for task in tasks}
        return figures

    def _figures(self, seed: int) -> dict[str, Any]:
        counts = _resampled_counts(self.conversation, seed)
        figures: dict[str, Any] = {
            "questions": len(self), "conversations": counts.shape[1], "answer_tokens": int(self.tokens.sum()),
        }  # fmt: skip
        for name, values, weights in (
            ("exact_match", self.exact, np.ones(len(self))),
            ("nll", self.nll, self.tokens),
            ("kl", self.kl, self.tokens),
            ("agreement", self.agreement, self.tokens),
        ):
            if values is None:
                continue
            mean, resampled = np.average(values, weights=weights), _mean(values, weights, self.conversation, counts)
            figures[name] = _figure(mean, resampled, counts)
            if name == "nll":
                figures["perplexity"] = _figure(np.exp(mean), np.exp(resampled), counts)
        return figures


def pooled(statistics: Sequence[AnswerStatistics]) -> AnswerStatistics:
    """Averages one method's results per question over several runs, such as runs with several calibration sets.

    Raises:
        ValueError: nothing to pool, or other questions.
    """
    if not statistics:
        raise ValueError("pooled needs at least one measurement.")
    first = statistics[0]
    means: dict[str, Any] = {}
    for other in statistics[1:]:
        require_same_questions(first, other)
    for name in ("exact", "nll", "kl", "agreement"):
        values = [getattr(one, name) for one in statistics]
        means[name] = None if any(value is None for value in values) else np.mean(values, axis=0)
    return AnswerStatistics(**means, tokens=first.tokens, task=first.task, conversation=first.conversation)


def require_same_questions(a: AnswerStatistics, b: AnswerStatistics) -> None:
    """Raises `ValueError` unless both were measured on the same questions in the same order."""
    for name in ("conversation", "tokens", "task"):
        if not np.array_equal(getattr(a, name), getattr(b, name)):
            raise ValueError(f"both statistics must be of the same questions in the same order; their {name} differs.")


def paired_ratio(a: AnswerStatistics, b: AnswerStatistics, seed: int = 0) -> tuple[float, float | None, float | None]:
    """Computes mean KL of ``a`` over mean KL of ``b`` on the same questions, with its 95 % interval.

    Percentile bootstrap over conversations; both models are measured on the same resampled conversations.

    Returns:
        (ratio, lower, upper); no bounds of fewer than [`LEAST`] conversations.

    Raises:
        ValueError: a KL is missing, or the two were not measured on the same questions.
    """
    if a.kl is None or b.kl is None:
        raise ValueError("paired_ratio needs the KL of both: pass reference= to answer_statistics.")
    require_same_questions(a, b)
    counts = _resampled_counts(a.conversation, seed)
    ratio = np.average(a.kl, weights=a.tokens) / np.average(b.kl, weights=b.tokens)
    above = _mean(a.kl, a.tokens, a.conversation, counts)
    resampled = above / _mean(b.kl, b.tokens, b.conversation, counts)
    return (float(ratio), *_bounds(resampled, counts))


def paired_differences(
    model: AnswerStatistics, reference: AnswerStatistics, seed: int = 0
) -> dict[str, list[float | None]]:
    """Computes how much a model's figures differ from another's on the same questions, with 95 % intervals.

    Percentile bootstrap over conversations; both are measured on the same resampled conversations.

    Returns:
        `"exact_match"`: model minus reference, and `"perplexity"`: model over reference; each [value, lower, upper],
        with None for the bounds of fewer than [`LEAST`] conversations.

    Raises:
        ValueError: the two were not measured on the same questions.
    """
    require_same_questions(model, reference)
    counts = _resampled_counts(model.conversation, seed)
    found: dict[str, list[float | None]] = {}
    for name, values, weights, seen in (
        ("exact_match", (model.exact, reference.exact), np.ones(len(model)), lambda d: d),
        ("perplexity", (model.nll, reference.nll), model.tokens, np.exp),
    ):
        difference = values[0].astype(float) - values[1].astype(float)
        resampled = seen(_mean(difference, weights, model.conversation, counts))
        value = seen(np.average(difference, weights=weights))
        found[name] = [float(value), *_bounds(resampled, counts)]
    return found


def resampled_kl(statistics: AnswerStatistics, seed: int = 0) -> Array:
    """Computes mean KL per answer token in each bootstrap resample of the conversations, float64 ``[RESAMPLES]``.

    The resamples are the same for all models on the same questions, so results of several models are paired.

    Raises:
        ValueError: there is no KL.
    """
    if statistics.kl is None:
        raise ValueError("resampled_kl needs a KL: pass reference= to answer_statistics.")
    counts = _resampled_counts(statistics.conversation, seed)
    return _mean(statistics.kl, statistics.tokens, statistics.conversation, counts)


def interval_note(summary: Mapping[str, Any]) -> str | None:
    """Returns why a summary, or one of its tasks, lacks standard errors; None if it has all."""
    number = summary["conversations"]
    if number < LEAST:
        return f"{number} conversations are too few for a standard error or an interval: give at least {LEAST}."
    if any(task["conversations"] < LEAST for task in summary["tasks"].values()):
        return f"A task of fewer than {LEAST} conversations has too few for a standard error."
    return None


def _figure(mean: Any, resampled: Array, counts: Array) -> dict[str, float | None]:
    return {"mean": float(mean), "standard_error": float(resampled.std(ddof=1)) if _suffice(counts) else None}


def _bounds(resampled: Array, counts: Array) -> tuple[float | None, float | None]:
    """Returns the 95 % interval of a resampled figure, if the conversations suffice."""
    if not _suffice(counts):
        return None, None
    lower, upper = np.quantile(resampled, [0.025, 0.975])
    return float(lower), float(upper)


def _suffice(counts: Array) -> bool:
    return counts.shape[1] >= LEAST


def _resampled_counts(conversation: Array, seed: int) -> Array:
    """Counts how often each conversation is in each bootstrap resample, int ``[RESAMPLES, conversations]``."""
    number = len(np.unique(conversation))
    return np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=RESAMPLES)


def _mean(values: Array, weights: Array, conversation: Array, counts: Array) -> Array:
    """Computes the weighted mean of ``values`` in each resample, ``[RESAMPLES]``."""
    _, position = np.unique(conversation, return_inverse=True)
    total = np.bincount(position, weights=values * weights)
    weight = np.bincount(position, weights=weights)
    return (counts @ total) / (counts @ weight)
