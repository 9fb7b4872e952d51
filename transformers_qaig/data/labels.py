"""Finds which tokens of a rendered conversation are the assistant's."""

from typing import Any

import torch

from .messages import ChatTools, Conversation
from .template import render, texts_of
from .tensors import NO_ANSWER


def answer_labels(processor: Any, form: Conversation, tools: ChatTools, ids: torch.Tensor) -> torch.Tensor:
    """Makes the labels of a conversation: the ids of every answer, `NO_ANSWER` elsewhere.

    An answer begins where the conversation so far, with the prompt to answer, differs from the whole. It ends where the
    conversation so far, with the answer, differs. Each answer costs the processor two more runs. A turn of weight 0 is
    context, and no answer.

    Args:
        processor: what wrote `ids`.
        form: the conversation as its chat template takes it.
        tools: the tools it was rendered with.
        ids: int64 `[1, T]`.

    Returns:
        int64 `[1, T]`.

    Raises:
        ValueError: every turn of the assistant is context.
    """
    labels = torch.full_like(ids, NO_ANSWER)
    turns = [turn for turn in form if turn["role"] == "assistant"]
    if turns and all(turn.get("is_context") for turn in turns):
        raise ValueError("all turns of the assistant have the weight 0, so none is an answer: leave this sample out")
    for index, turn in enumerate(form):
        if turn["role"] != "assistant" or turn.get("is_context") or index == 0:
            continue
        asked = _ids(processor, form[:index], tools, add_generation_prompt=True)
        answered = _ids(processor, form[: index + 1], tools)
        answer = slice(_shared(asked, ids[0]), _shared(answered, ids[0]))
        if answer.start >= answer.stop and texts_of(turn):
            answer = _by_replacing(processor, form, tools, index, ids[0])
        labels[0, answer] = ids[0, answer]
    return labels


def _by_replacing(processor: Any, form: Conversation, tools: ChatTools, index: int, ids: torch.Tensor) -> slice:
    """Finds the text of turn `index` by rendering another text in its place.

    This is for templates that write a turn otherwise once others follow, for example without its reasoning. Then no
    beginning of the conversation is a beginning of the whole.
    """
    texts = texts_of(form[index])
    other = next(digit for digit in "012" if digit not in (texts[0].strip()[0], texts[-1].strip()[-1]))
    content = other if isinstance(form[index]["content"], str) else [{"type": "text", "text": other}]
    changed = _ids(processor, [*form[:index], {**form[index], "content": content}, *form[index + 1 :]], tools)
    return slice(_shared(changed, ids), len(ids) - _shared(changed.flip(0), ids.flip(0)))


def _ids(processor: Any, form: Conversation, tools: ChatTools, **options: Any) -> torch.Tensor:
    encoded = render(processor, form, tools, tokenize=True, return_dict=True, return_tensors="pt", **options)
    return torch.as_tensor(encoded["input_ids"])[0].long().cpu()


def _shared(a: torch.Tensor, b: torch.Tensor) -> int:
    """Returns the length of the longest common beginning of two rows of ids."""
    length = min(len(a), len(b))
    differs = (a[:length] != b[:length]).nonzero()
    return int(differs[0]) if len(differs) else length
