"""Converts question and answer columns to turns.

It reads plain text, several annotators, SQuAD, multiple choice and TRL's preferences.
"""

import ast
import math
from collections.abc import Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any

from .columns import choices_of
from .turns import Turn, is_messages, parse_messages, read_messages, text_part

CAPTION_PROMPTS = {"image": "Describe this image.", "video": "Describe this video."}
_ANSWER_KEYS = ("answer", "text", "value", "input_text")
_SHOWN = 80


def question_and_answer(record: Mapping[str, Any], found: Mapping[str, str], base_dir: Path | None) -> list[Turn]:
    """Returns the turns of a record without a messages column.

    Prompt and response may each be a text or a list of messages.

    Args:
        record: with the columns.
        found: part → column, from [`transformers_qaig.data.columns.find_columns`].
        base_dir: the folder that relative image paths start from.

    Raises:
        ValueError: a column holds what is neither; the message names it and says what it should be.
    """
    response = parse_messages(record[found["response"]]) if "response" in found else None
    if "prompt" not in found:
        if is_messages(response):  # TRL's implicit prompt: the whole conversation
            return read_messages(response, base_dir)
        shown = next((kind for kind in CAPTION_PROMPTS if kind in found), None)
        if shown is None:
            raise ValueError(
                f"the sample has a response ({found.get('response')!r}), but neither a prompt nor an image: say which "
                "column is the question with columns={'prompt': ...}, or give a list of messages"
            )
        return [_user(CAPTION_PROMPTS[shown]), *_response(response, found, {}, base_dir)]
    prompt = parse_messages(record[found["prompt"]])
    choices = _lettered(choices_of(record, found))
    if isinstance(prompt, Mapping) and is_messages([prompt]):
        prompt = [prompt]
    if is_messages(prompt):
        turns = read_messages(prompt, base_dir)
    else:
        turns = [_user(_question(record, found, _text(prompt, found["prompt"]), choices))]
    answer = _response(response, found, choices, base_dir)
    if not answer or answer[0]["role"] not in ("system", "user"):
        return turns + answer
    if any(a["role"] != b["role"] or a["content"] != b["content"] for a, b in zip(turns, answer)):
        raise ValueError(
            f"the messages in {found['response']!r} begin with a turn of the {answer[0]['role']}, and not with "
            f"those in {found['prompt']!r}: they must go on after the prompt, or repeat it"
        )
    return answer


def response_of(record: Mapping[str, Any], found: Mapping[str, str], base_dir: Path | None) -> list[Turn]:
    """Returns the turns of a record's response, which continues a column of messages; none if it has no such column."""
    return _response(parse_messages(record[found["response"]]), found, {}, base_dir) if "response" in found else []


def _user(text: str) -> Turn:
    return {"role": "user", "content": [text_part(text)]}


def _question(record: Mapping[str, Any], found: Mapping[str, str], question: str, choices: str | dict[str, str]) -> str:
    """Returns the question with what belongs to it: the passage before it, Alpaca's input or the choices after it."""
    parts = [question]
    if "context" in found:
        context = record[found["context"]]
        passages = [context] if isinstance(context, str) else context
        if not isinstance(passages, Sequence) or not all(isinstance(passage, str) for passage in passages):
            raise _misfit(found["context"], context, "a str or a list of str")
        parts[:0] = passages
    if found["prompt"] == "instruction" and isinstance(record.get("input"), str) and record["input"].strip():
        parts.append(record["input"])
    if choices:
        written = choices if isinstance(choices, str) else "\n".join(f"{k}. {text}" for k, text in choices.items())
        parts.append(written)
    return "\n\n".join(parts) if "context" in found else "\n".join(parts)


def _response(value: Any, found: Mapping[str, str], choices: str | dict[str, str], base_dir: Path | None) -> list[Turn]:
    if value is None:
        return []
    name = found["response"]
    if isinstance(value, Mapping) and is_messages([value]):
        value = [value]
    if is_messages(value):
        return read_messages(value, base_dir)
    answer = _answer(value, name)
    if answer is None:
        return []
    if isinstance(choices, dict) and choices:
        answer = _chosen(answer, choices, name)
    return [{"role": "assistant", "content": [text_part(answer)]}]


def _answer(value: Any, name: str) -> str | None:
    """Returns one answer from a text, several annotators or a nested column such as SQuAD's; None: there is none."""
    if isinstance(value, Mapping):
        key = next((key for key in _ANSWER_KEYS if key in value), None)
        if key is None:
            raise _misfit(name, value, f"a str, or a dict with one of {list(_ANSWER_KEYS)}")
        return _answer(value[key], name)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return _answer(value[0], name) if value else None
    return None if value is None else _text(value, name)


def _text(value: Any, name: str) -> str:
    if isinstance(value, Number) and math.isfinite(value):  # type: ignore[arg-type]
        return str(value)
    if not isinstance(value, str):
        batch = isinstance(value, Sequence) and not isinstance(value, bytes)
        hint = "; is it a batch? pass its samples one by one" if batch else ""
        raise _misfit(name, value, f"a str or a list of messages{hint}")
    return value


def _lettered(choices: Any) -> str | dict[str, str]:
    """Returns the choices under their letters, empty if there are none; a `str` that is no list stays as it is."""
    if isinstance(choices, str):  # some sets store the list as Python or JSON writes it
        try:
            choices = ast.literal_eval(choices)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return choices
    if choices is None:
        return {}
    if isinstance(choices, Mapping):
        if {"text", "label"} <= choices.keys():
            choices = dict(zip(choices["label"], choices["text"]))
        return {str(letter): _text(text, "choices") for letter, text in choices.items()}
    if not isinstance(choices, Sequence):
        raise _misfit("choices", choices, "a list of str or a dict of letters and texts")
    return {chr(ord("A") + i): _text(choice, "choices") for i, choice in enumerate(choices)}


def _chosen(answer: str, choices: dict[str, str], name: str) -> str:
    """Returns the choice that `answer` names by text, letter or index from 0; another text stays as it is."""
    bare = answer.strip("().: \n")
    letters, texts = list(choices), [text.strip().casefold() for text in choices.values()]
    if answer.strip().casefold() in texts:
        letter = letters[texts.index(answer.strip().casefold())]
    elif bare in choices:
        letter = bare
    elif bare.isdecimal() and int(bare) < len(choices):
        letter = letters[int(bare)]
    elif bare.lstrip("-").isdecimal() or len(bare) == 1:
        raise ValueError(
            f"the column {name!r} is {answer!r}, which is neither a choice, its letter nor its index from 0: "
            f"{choices!r:.200}"
        )
    else:
        return answer
    return f"{letter}. {choices[letter]}"


def _misfit(name: str, value: Any, expected: str) -> ValueError:
    keys = f" with {sorted(map(str, value))}" if isinstance(value, Mapping) else f" ({value!r:.{_SHOWN}})"
    return ValueError(
        f"the column {name!r} must be {expected}; it is {type(value).__name__}{keys}. "
        "Say which columns to read with columns={'prompt': ..., 'response': ...}"
    )
