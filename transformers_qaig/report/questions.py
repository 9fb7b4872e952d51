"""Makes questions of conversations: each answer alone, as the model's own processor writes it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.messages import ChatTools, to_conversation, tools_of
from ..data.template import render
from ..data.turns import is_answer
from ..utils.printable import printable

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
        prompt: the messages before the answer.
    """

    inputs: dict[str, Tensor]
    start: int
    stop: int
    task: str
    conversation: int
    prompt: Sequence[Message] = ()

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
        columns: what records call their ``messages``, ``image``, ``video``, ``prompt``, ``response``, ``tools`` and
            ``task`` (default: found by name).
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
            questions.append(Question(inputs, start, stop, printable(str(reply.get("task", ""))), index, prompt))
    return questions


def _messages_of(
    record: Sequence[Message] | Mapping[str, Any], names: Mapping[str, str] | None, base_dir: Path | None, index: int
) -> tuple[Sequence[Message], ChatTools]:
    """Returns a record's messages, and the tools that it offers."""
    if not isinstance(record, Mapping) and base_dir is None and not _must_be_opened(record):
        return record, None
    task_column = (names or {}).get("task", "task")
    columns = {part: name for part, name in (names or {}).items() if part != "task"} or None
    try:
        messages, tools = to_conversation(record, columns, base_dir), tools_of(record, columns)
    except (ValueError, TypeError) as error:
        raise ValueError(f"conversations[{index}] is not usable: {error}") from error
    task = record.get(task_column) if isinstance(record, Mapping) else None
    if task_column != "task" and isinstance(record, Mapping) and task_column not in record:
        raise ValueError(f"columns['task'] is {task_column!r}, but conversations[{index}] has only {sorted(record)}.")
    return messages if task is None else [{**message, "task": task} for message in messages], tools


def _must_be_opened(conversation: Sequence[Message]) -> bool:
    """Whether there is what a processor cannot open, or not as in calibration.

    That is a video, whose rate of frames a processor cannot know, or an image in bytes: `datasets` has them undecoded.
    """
    contents = (message.get("content") for message in conversation if isinstance(message, Mapping))
    parts = (part for content in contents if isinstance(content, (list, tuple)) for part in content)
    return any(
        isinstance(part, Mapping)
        and ("video" in str(part.get("type")) or isinstance(part.get("image"), (Mapping, bytes, bytearray)))
        for part in parts
    )


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
