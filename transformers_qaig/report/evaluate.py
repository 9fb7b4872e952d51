"""Measures how much of a model's answers survives: KL to a reference, agreement, likelihood, exact match.

Everything is teacher-forced: one forward pass over question and answer, read at the answer's positions.

    original = answer_statistics(model, processor, conversations)
    packed = answer_statistics(quantized, processor, conversations, reference=model)
    rounded = answer_statistics(rtn, processor, conversations, reference=model)
    packed.summary()["kl"]                      # {"mean": …, "standard_error": …}, nats per answer token
    paired_ratio(packed, rounded)               # mean KL of one over the other, with its 95 % interval

`transformers_qaig.report.comparison` makes JSON, a table and a plot of several such statistics.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from ..data.messages import ChatTools, to_conversation, tools_of
from ..data.template import render
from ..data.tensors import pixels_as
from ..data.turns import is_answer
from ..utils.logging import tqdm
from .statistics import AnswerStatistics, paired_ratio

__all__ = [
    "AnswerStatistics",
    "Question",
    "answer_logits",
    "answer_statistics",
    "encode_questions",
    "paired_ratio",
]

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """One answer in its conversation, as the model's own processor wrote it.

    Attributes:
        inputs: the processor's tensors for prompt and answer, batch size 1; ``input_ids`` is ``[1, T]``.
        start: position of the answer's first token; the answer is ``input_ids[0, start:stop]``.
        stop: one past the answer's last token, which is the end-of-sequence token where the template writes one.
        task: the ``"task"`` entry of the assistant's message, or ``""``.
        conversation: index of the conversation it came from (questions about one picture are not independent).
    """

    inputs: dict[str, Tensor]
    start: int
    stop: int
    task: str
    conversation: int

    @property
    def answer(self) -> Tensor:
        """Token ids of the answer, int64 ``[A]``."""
        return self.inputs["input_ids"][0, self.start : self.stop]


def encode_questions(
    processor: Any,
    conversations: Iterable[Sequence[Message] | Mapping[str, Any]],
    eos_token_ids: Sequence[int] = (),
    *,
    columns: Mapping[str, str] | None = None,
    base_dir: Path | None = None,
) -> list[Question]:
    """Encodes every assistant turn of ``conversations`` as a question of its own.

    Each answer is asked alone: system messages and all pictures so far stay, earlier questions and answers do not. The
    answer's tokens are found by rendering the chat twice, without and with the answer. They start where the two token
    sequences differ, and end after the first of ``eos_token_ids``. What a template writes after that is never
    generated.

    Args:
        processor: what ``AutoProcessor.from_pretrained`` returns; its chat template is used.
        conversations: chat messages, where an assistant's message may carry ``"task"``, a name to report it under; or
            records such as ``{"image": …, "question": …, "answer": …, "task": …}``: a ``datasets.Dataset`` will do.
        eos_token_ids: tokens that end a generation.
        columns: what records call their ``messages``, ``image``, ``video``, ``prompt``, ``response`` and ``tools``
            (default: found by name).
        base_dir: the folder that relative image paths start from, for conversations from a file.

    Raises:
        ValueError: a conversation has no assistant turn with text, or its template hides the answer.
    """
    questions = []
    for index, conversation in enumerate(conversations):
        messages, tools = _messages_of(conversation, columns, base_dir, index)
        turns = list(_single_turns(messages))
        if not turns and any(m["role"] == "assistant" and not _is_asked(m) for m in messages):
            continue
        if not turns:
            raise ValueError(f"conversations[{index}] has no assistant message after a user message: nothing to check.")
        for prompt, reply in turns:
            asked = _render(processor, prompt, tools, add_generation_prompt=True)["input_ids"][0]
            said = {name: value for name, value in reply.items() if name != "task"}
            inputs = _render(processor, [*prompt, said], tools)
            ids = inputs["input_ids"][0]
            shared = min(len(asked), len(ids))
            differs = (asked[:shared] != ids[:shared]).nonzero()
            start = int(differs[0]) if len(differs) else shared
            last = torch.tensor(list(eos_token_ids), dtype=ids.dtype, device=ids.device)
            ends = torch.isin(ids[start:], last).nonzero()
            stop = start + int(ends[0]) + 1 if len(ends) else len(ids)
            if start == 0 or start >= stop:
                raise ValueError(
                    f"conversations[{index}]: the chat template gives no tokens to the answer {said!r:.200}; "
                    "check the message's content and the processor's chat_template."
                )
            questions.append(Question(inputs, start, stop, str(reply.get("task", "")), index))
    return questions


def answer_logits(model: torch.nn.Module, questions: Sequence[Question], *, batch_size: int = 32) -> list[Tensor]:
    """Computes the logits that predict each answer's tokens: ``[A, V]`` per question, on the CPU, in the model's dtype.

    Pass them as ``reference=`` when several models are compared with one. They take A·V values per question.
    """
    logits: list[Tensor] = [torch.empty(0)] * len(questions)
    for batch in tqdm(_equal_shape_batches(questions, batch_size), desc="Predictions", unit="batch"):
        for i, rows in zip(batch, _forward(model, [questions[i] for i in batch])):
            logits[i] = rows.cpu()
    return logits


def answer_statistics(
    model: torch.nn.Module | Sequence[Tensor],
    processor: Any,
    conversations: Sequence[Sequence[Message] | Mapping[str, Any]] | Sequence[Question],
    *,
    reference: torch.nn.Module | Sequence[Tensor] | None = None,
    batch_size: int = 32,
) -> AnswerStatistics:
    """Computes teacher-forced statistics of every answer in ``conversations``.

    Questions whose tensors have equal shapes share a batch, so nothing is ever padded.

    Args:
        model: a vision-language (or language) model with logits, or its `answer_logits` on the same questions.
        processor: its processor; unused when ``conversations`` is already what `encode_questions` returns.
        conversations: chat messages (see `encode_questions`), or encoded questions.
        reference: the model to compare with, or its `answer_logits` on the same questions.
        batch_size: questions per forward pass.

    Raises:
        ValueError: no question, ``batch_size`` below 1, or logits that do not fit the questions.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    questions = _as_questions(model, processor, conversations)
    for name, given in (("model", model), ("reference", reference)):
        if given is not None and not isinstance(given, torch.nn.Module) and len(given) != len(questions):
            raise ValueError(f"{name} holds logits of {len(given)} questions, but there are {len(questions)}.")

    columns = np.full((4, len(questions)), np.nan)
    for batch in tqdm(_equal_shape_batches(questions, batch_size), desc="Answers", unit="batch"):
        logits = _logits_of(model, questions, batch)
        expected = [None] * len(batch) if reference is None else _logits_of(reference, questions, batch)
        for i, rows, target in zip(batch, logits, expected):
            columns[:, i] = _answer_figures(rows, questions[i].answer, target)

    return AnswerStatistics(
        exact=columns[0].astype(bool),
        nll=columns[1],
        kl=None if reference is None else columns[2],
        agreement=None if reference is None else columns[3],
        tokens=np.array([question.stop - question.start for question in questions]),
        task=np.array([question.task for question in questions]),
        conversation=np.array([question.conversation for question in questions]),
    )


def _as_questions(model: Any, processor: Any, conversations: Sequence[Any]) -> list[Question]:
    if len(conversations) == 0:
        raise ValueError("conversations is empty: there is no answer to check.")
    if isinstance(conversations[0], Question):
        return list(conversations)
    generation = getattr(model, "generation_config", None)
    eos = generation.eos_token_id if generation is not None else None
    ids = eos if isinstance(eos, list) else [eos]
    return encode_questions(processor, conversations, [token for token in ids if token is not None])


def _messages_of(
    record: Sequence[Message] | Mapping[str, Any], columns: Mapping[str, str] | None, base_dir: Path | None, index: int
) -> tuple[Sequence[Message], ChatTools]:
    """Returns a record's messages, and the tools that it offers."""
    if not isinstance(record, Mapping) and base_dir is None and not _has_video(record):
        return record, None
    try:
        messages, tools = to_conversation(record, columns, base_dir), tools_of(record, columns)
    except (ValueError, TypeError) as error:
        raise ValueError(f"conversations[{index}] is not usable: {error}") from error
    task = record.get("task") if isinstance(record, Mapping) else None
    return messages if task is None else [{**message, "task": task} for message in messages], tools


def _has_video(conversation: Sequence[Message]) -> bool:
    """Whether there is a video, which is to be read as in calibration: a processor cannot know the rate of frames."""
    contents = (message.get("content") for message in conversation if isinstance(message, Mapping))
    parts = (part for content in contents if isinstance(content, (list, tuple)) for part in content)
    return any(isinstance(part, Mapping) and "video" in str(part.get("type")) for part in parts)


def _is_asked(message: Message) -> bool:
    """Whether a turn of the assistant is an answer to measure: of weight 0 it is context."""
    return is_answer(message) and not message.get("is_context")


def _single_turns(conversation: Sequence[Message]) -> Iterator[tuple[list[Message], Message]]:
    """Yields (prompt, assistant message) of each answer; a turn of weight 0 is none.

    A prompt is system messages, all pictures so far, one question, and the tools' calls and results since then.
    """
    system = [message for message in conversation if message["role"] == "system"]
    pictures: list[Any] = []
    question: list[Any] = []
    calls: list[Message] = []
    last: list[Message] = []
    for message in conversation:
        if message["role"] == "user":
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
            question = [*pictures, *parts]
            pictures += [part for part in parts if part["type"] != "text"]
            calls, last = [], []
        elif message["role"] == "tool":
            calls, last = [*calls, *last, message], []
        elif message["role"] == "assistant" and question:
            if _is_asked(message):
                yield [*system, {"role": "user", "content": question}, *calls], message
            last = [message]


def _render(processor: Any, messages: Sequence[Message], tools: ChatTools = None, **options: Any) -> dict[str, Tensor]:
    options |= {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = render(processor, [dict(message) for message in messages], tools, **options)
    return {name: value for name, value in inputs.items() if name != "labels"}  # some processors write their own


def _equal_shape_batches(questions: Sequence[Question], batch_size: int) -> list[list[int]]:
    """Groups the indices of questions that can be concatenated along the batch dimension without padding."""
    shapes = [tuple((name, tuple(value.shape)) for name, value in question.inputs.items()) for question in questions]
    order = sorted(range(len(questions)), key=shapes.__getitem__)
    alike = [list(group) for _, group in groupby(order, key=shapes.__getitem__)]
    return [indices[i : i + batch_size] for indices in alike for i in range(0, len(indices), batch_size)]


def _logits_of(
    model: torch.nn.Module | Sequence[Tensor], questions: Sequence[Question], batch: list[int]
) -> Sequence[Tensor]:
    """Returns logits ``[A, V]`` of the questions in ``batch``, computed or looked up."""
    if isinstance(model, torch.nn.Module):
        return _forward(model, [questions[i] for i in batch])
    return [model[i] for i in batch]


@torch.no_grad()
def _forward(model: torch.nn.Module, questions: Sequence[Question]) -> list[Tensor]:
    """Returns logits ``[A, V]`` at the positions that predict each answer, from one forward pass."""
    weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    batch: dict[str, Any] = {}
    for name in questions[0].inputs:
        tensor = torch.cat([question.inputs[name] for question in questions])
        batch[name] = pixels_as(tensor, weight.dtype).to(weight.device)
    length = batch["input_ids"].shape[1]
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        batch["logits_to_keep"] = length - min(question.start for question in questions) + 1
    logits = model(**batch, use_cache=False).logits
    # Counted from the end, because the model may have kept only the last positions.
    return [row[question.start - 1 - length : question.stop - 1 - length] for row, question in zip(logits, questions)]


def _answer_figures(logits: Tensor, answer: Tensor, reference: Tensor | None) -> tuple[float, float, float, float]:
    """Computes (exact, NLL, KL(reference ‖ model), agreement) of one answer from logits ``[A, V]``, in float32."""
    log_p = log_softmax(logits.float(), dim=-1)
    answer = answer.to(log_p.device)
    if len(log_p) != len(answer):
        raise ValueError(f"the model's logits are {tuple(logits.shape)}, but the answer has {len(answer)} tokens.")
    first = log_p.argmax(dim=-1)
    exact = float((first == answer).all())
    nll = -log_p.gather(1, answer[:, None]).mean().item()
    if reference is None:
        return exact, nll, np.nan, np.nan
    if reference.shape != logits.shape:
        raise ValueError(f"reference logits are {tuple(reference.shape)}, the model's are {tuple(logits.shape)}.")
    log_q = log_softmax(reference.to(log_p.device).float(), dim=-1)
    # 0·(−inf) is 0 here: a token with probability 0 in the reference costs nothing.
    terms = torch.where(log_q.isneginf(), 0.0, log_q.exp() * (log_q - log_p))
    return exact, nll, terms.sum(dim=-1).mean().item(), (first == log_q.argmax(dim=-1)).float().mean().item()
