"""Finds which column of a record plays which part."""

from collections.abc import Mapping
from typing import Any

from ..utils.suggestion import did_you_mean

# What a column may be called when the user does not say: the names that public VLM sets use, the likeliest first.
COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "texts", "prompt_messages"),
    "image": ("image", "images", "img", "picture", "image_path", "image_url", "jpg", "png", "webp"),
    "video": ("video", "videos", "video_path", "video_url", "mp4"),
    "prompt": ("question", "query", "prompt", "instruction", "problem", "input", "user", "text"),
    "response": (
        *("answer", "answers", "response", "output", "completion", "chosen", "solution"),
        *("correct_choice_idx", "label", "assistant"),
        *("multiple_choice_answer", "caption", "captions", "sentences", "description"),
    ),
    "context": ("context", "passage"),
    "choices": ("choices", "options"),
    "system": ("system", "system_prompt"),
    "tools": ("tools",),
}
_LETTERS = "ABCDEFGHIJ"  # of multiple-choice sets with a column for each choice


def find_columns(record: Mapping[str, Any], columns: Mapping[str, str] | None) -> dict[str, str]:
    """Returns the part that each key of `record` plays: part → key.

    Raises:
        ValueError: `columns` names an unknown part or a missing column, nothing usable is found, or beside an image
            there is text that would not be read.
    """
    if columns is not None:
        for part, name in columns.items():
            if part not in COLUMN_NAMES:
                hint = did_you_mean(part, COLUMN_NAMES)
                raise ValueError(f"columns: unknown part {part!r}, it must be one of {sorted(COLUMN_NAMES)}.{hint}")
            if name not in record:
                raise ValueError(f"columns[{part!r}] is {name!r}, but the sample has only {_keys(record)}")
        return dict(columns)
    found = {}
    for part, names in COLUMN_NAMES.items():
        present = [name for name in names if record.get(name) is not None]
        if present:
            found[part] = present[0]
    unread = [name for name, value in record.items() if isinstance(value, str) and " " in value.strip()]
    unread = sorted(set(unread) - set(found.values()))
    if found and found.keys() <= {"image", "video"} and unread:
        raise ValueError(
            f"the sample has {' and '.join(found)}, and text in {unread} that would not be read: say which is "
            "which with CalibrationConfig(columns={'image': ..., 'prompt': ..., 'response': ...}), or remove the text"
        )
    if not found.keys() & {"messages", "image", "video", "prompt", "response"}:
        raise ValueError(
            f"none of the sample's keys {_keys(record)} is known: say which is which with "
            "CalibrationConfig(columns={'image': ..., 'prompt': ..., 'response': ...}), or by {'messages': ...}"
        )
    return found


def choices_of(record: Mapping[str, Any], found: Mapping[str, str]) -> Any:
    """Returns the choices of a multiple-choice question: a column, or the columns "A", "B" and so on; None without."""
    if "choices" in found:
        return record[found["choices"]]
    lettered = {letter: record[letter] for letter in _LETTERS if record.get(letter) is not None}
    return lettered if {"A", "B"} <= lettered.keys() else None


def _keys(record: Mapping[str, Any]) -> list[str]:
    return sorted(map(str, record))
