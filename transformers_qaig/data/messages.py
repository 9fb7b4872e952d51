"""Turns one record of a calibration set into one conversation, with every image and video opened.

A conversation is a list of `{"role": str, "content": list}`. The content's parts are `{"type": "image", "image":
PIL.Image}`, `{"type": "video", "video": Clip}` and `{"type": "text", "text": str}`: the one form that every processor's
chat template reads. What else a turn has for the template (`tool_calls`, `reasoning_content`, `name` ...) stays in it.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .columns import find_columns
from .images import open_image
from .questions import question_and_answer, response_of
from .turns import Turn, parse_json, parse_messages, read_messages, text_part, without_none
from .video import Clip, open_video

Conversation = list[Turn]
ChatTools = list[dict[str, Any] | Callable[..., Any]] | None  # JSON schemas or functions

MARKERS = {"image": "<image>", "video": "<video>"}
NO = ("false", "0", "0.0")
"""How a label of a rejected completion is written: `False`, numpy's, 0, or a text."""


def to_conversation(
    record: Any, columns: Mapping[str, str] | None = None, base_dir: Path | None = None
) -> Conversation:
    """Turns one record into a conversation.

    Args:
        record: a list of chat messages; a dict with messages (and images and videos that fill the placeholders in
            order); a dict with an image or a video, a question and an answer, each a text or (TRL's `prompt`,
            `completion`, `chosen`) a list of messages; a bare PIL image; or a bare `str` (text only).
        columns: what the record calls its parts (default: found by name), see [`columns.COLUMN_NAMES`].
        base_dir: the folder that relative image paths start from.

    Raises:
        ValueError, TypeError: the record is none of these, or one of its images cannot be opened.
    """
    record = parse_messages(record)
    if isinstance(record, str):
        return [{"role": "user", "content": [text_part(record)]}]
    if isinstance(record, (Image.Image, np.ndarray, torch.Tensor)):
        record = {"image": record}
    if isinstance(record, Mapping):
        label = record.get("label")
        if "completion" in record and str(label).lower() in NO:  # TRL's unpaired preferences
            raise ValueError(
                f"its 'label' is {label!r}, so its completion is a rejected one. Leave such records out: "
                "dataset.filter(lambda record: record['label'])"
            )
        found = find_columns(record, columns)
        media: dict[str, list[Any]] = {
            "image": _images_of(record[found["image"]], base_dir) if "image" in found else [],
            "video": _videos_of(record, found["video"], base_dir) if "video" in found else [],
        }
        if "messages" in found:
            conversation = read_messages(record[found["messages"]], base_dir)
            if all(turn["role"] != "assistant" for turn in conversation):
                conversation += response_of(record, found, base_dir)
        else:
            if record.get("history"):
                raise ValueError(
                    "its column 'history' holds earlier turns, which would be lost: give the whole conversation as "
                    "'messages', or remove the column"
                )
            conversation = question_and_answer(record, found, base_dir)
        if "system" in found and record[found["system"]]:
            conversation = _with_system(conversation, record[found["system"]], found["system"])
        return _insert_media(conversation, media)
    if isinstance(record, Sequence) and not isinstance(record, (bytes, bytearray)):
        return _insert_media(read_messages(record, base_dir), {})
    raise TypeError(
        f"a sample must be a list of chat messages, a dict, a PIL image or a str, not {type(record).__name__}"
    )


def tools_of(record: Any, columns: Mapping[str, str] | None = None) -> ChatTools:
    """Returns the tools that a record offers to the assistant, for the chat template; None: no tools.

    Raises:
        ValueError: they are no list of JSON schemas or functions.
    """
    name = find_columns(record, columns).get("tools") if isinstance(record, Mapping) else None
    if name is None or not record[name]:
        return None
    tools = without_none(parse_json(record[name], f"the column {name!r}"))
    tools = [tools] if isinstance(tools, Mapping) else tools
    tools = [parse_json(tool, "a tool") for tool in tools] if isinstance(tools, list) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) or callable(tool) for tool in tools):
        raise ValueError(f"the column {name!r} must be a list of JSON schemas or functions, it is {tools!r:.80}")
    return tools or None


def text_of(conversation: Conversation) -> list[str]:
    """Returns every text part, in order."""
    return [part["text"] for message in conversation for part in message["content"] if part["type"] == "text"]


def images_of(conversation: Conversation) -> list[Image.Image]:
    """Returns every image, in order."""
    return [part["image"] for message in conversation for part in message["content"] if part["type"] == "image"]


def videos_of(conversation: Conversation) -> list[Clip]:
    """Returns every video, in order."""
    return [part["video"] for message in conversation for part in message["content"] if part["type"] == "video"]


def _with_system(conversation: Conversation, system: Any, name: str) -> Conversation:
    if not isinstance(system, str):
        raise ValueError(f"the column {name!r} must be a str, it is {type(system).__name__}")
    if conversation[0]["role"] == "system":
        return conversation
    return [{"role": "system", "content": [text_part(system)]}, *conversation]


def _images_of(value: Any, base_dir: Path | None) -> list[Image.Image]:
    several = isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))
    return [open_image(source, base_dir) for source in (value if several else [value]) if source is not None]


def _videos_of(record: Mapping[str, Any], name: str, base_dir: Path | None) -> list[Clip]:
    """Opens a column of videos. A list is one video's frames, unless the column's name or its items say otherwise."""
    value, fps = record[name], record.get("fps")
    listed = isinstance(value, (list, tuple))
    several = listed and (name == "videos" or any(isinstance(item, (list, tuple)) for item in value))
    return [open_video(source, base_dir, fps) for source in (value if several else [value]) if source is not None]


def _insert_media(conversation: Conversation, media: Mapping[str, Sequence[Any]]) -> Conversation:
    """Puts images and videos into their placeholders.

    These are parts without a source, else `<image>` and `<video>` in the text, else the front of the first question.
    """
    markers = [MARKERS[kind] for kind, items in media.items() if items]
    for message in conversation:
        if markers and all(part["type"] == "text" for part in message["content"]):
            message["content"] = [p for part in message["content"] for p in _split_markers(part["text"], markers)]
    for kind in MARKERS:
        items = media.get(kind, [])
        slots = [p for m in conversation for p in m["content"] if p["type"] == kind and p[kind] is None]
        if items and not slots:
            first = next((m for m in conversation if m["role"] == "user"), conversation[0])
            slots = [{"type": kind, kind: None} for _ in items]
            first["content"] = slots + first["content"]
        if len(slots) != len(items):
            raise ValueError(
                f"the messages have {len(slots)} {kind} placeholders and the sample has {len(items)} {kind}s: "
                f"give one {kind} for each placeholder"
            )
        for slot, item in zip(slots, items):
            slot[kind] = item
    return conversation


def _split_markers(text: str, markers: Sequence[str]) -> Iterator[dict[str, Any]]:
    kinds = {marker: kind for kind, marker in MARKERS.items()}
    for piece in re.split("(" + "|".join(map(re.escape, markers)) + ")", text):
        if piece in markers:
            yield {"type": kinds[piece], kinds[piece]: None}
        elif piece.strip():
            yield text_part(piece.strip("\n"))
