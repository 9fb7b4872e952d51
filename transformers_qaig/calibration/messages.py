"""One record of a calibration set -> one conversation, with every image opened.

A conversation is a list of `{"role": str, "content": list}`; the content's parts are `{"type": "image", "image":
PIL.Image}` and `{"type": "text", "text": str}`: the one form that every processor's chat template understands.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .images import open_image

Conversation = list[dict[str, Any]]

# What a column may be called when the user does not say: the names that public VLM sets use, the likeliest first.
COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "texts", "prompt_messages"),
    "image": ("image", "images", "img", "picture", "image_path", "image_url", "jpg", "png", "webp"),
    "prompt": ("question", "query", "prompt", "instruction", "problem", "input", "user", "text"),
    "response": (
        *("answer", "answers", "response", "output", "completion", "solution", "label", "assistant"),
        *("multiple_choice_answer", "caption", "captions", "sentences", "description"),
    ),
}
CAPTION_PROMPT = "Describe this image."
IMAGE_MARKER = "<image>"

_IMAGE_KEYS = ("image", "image_url", "url", "path", "base64")
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


def to_conversation(
    record: Any, columns: Mapping[str, str] | None = None, base_dir: Path | None = None
) -> Conversation:
    """
    Turns one record into a conversation.

    Args:
        record: a list of chat messages; a dict with messages (and images that fill the placeholders in order); a
            dict with an image, a question and an answer; a bare PIL image; or a bare `str` (text only).
        columns: what the record calls its `messages`, `image`, `prompt` and `response` (default: found by name).
        base_dir: the folder that relative image paths start from.

    Raises:
        ValueError, TypeError: the record is none of these, or one of its images cannot be opened.
    """
    if isinstance(record, str):
        return [{"role": "user", "content": [_text(record)]}]
    if isinstance(record, Image.Image):
        record = {"image": record}
    if isinstance(record, Mapping):
        found = find_columns(record, columns)
        images = _images_of(record[found["image"]], base_dir) if "image" in found else []
        if "messages" in found:
            return _fill(_messages(record[found["messages"]], base_dir), images)
        return _fill(list(_question_and_answer(record, found)), images)
    if isinstance(record, Sequence):
        return _fill(_messages(record, base_dir), [])
    raise TypeError(
        f"a sample must be a list of chat messages, a dict, a PIL image or a str, not {type(record).__name__}"
    )


def find_columns(record: Mapping[str, Any], columns: Mapping[str, str] | None) -> dict[str, str]:
    """
    Which of `record`'s keys plays which part.

    Raises:
        ValueError: `columns` names an unknown part or a missing column, or nothing usable is found.
    """
    if columns is not None:
        for part, name in columns.items():
            if part not in COLUMN_NAMES:
                near = difflib.get_close_matches(part, COLUMN_NAMES, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"columns: unknown part {part!r}, it must be one of {sorted(COLUMN_NAMES)}{hint}")
            if name not in record:
                raise ValueError(f"columns[{part!r}] is {name!r}, but the sample has only {sorted(record)}")
        return dict(columns)
    found = {}
    for part, names in COLUMN_NAMES.items():
        present = [name for name in names if record.get(name) is not None]
        if present:
            found[part] = present[0]
    if not found:
        raise ValueError(
            f"none of the sample's keys {sorted(record)} is known: say which is which with "
            "columns={'image': ..., 'prompt': ..., 'response': ...} or columns={'messages': ..., 'image': ...}"
        )
    return found


def text_of(conversation: Conversation) -> list[str]:
    """Every text part, in order."""
    return [part["text"] for message in conversation for part in message["content"] if part["type"] == "text"]


def images_of(conversation: Conversation) -> list[Image.Image]:
    """Every image, in order."""
    return [part["image"] for message in conversation for part in message["content"] if part["type"] == "image"]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _images_of(value: Any, base_dir: Path | None) -> list[Image.Image]:
    several = isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))
    return [open_image(source, base_dir) for source in (value if several else [value]) if source is not None]


def _question_and_answer(record: Mapping[str, Any], found: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    prompt = record[found["prompt"]] if "prompt" in found else CAPTION_PROMPT
    answer = record[found["response"]] if "response" in found else None
    if isinstance(answer, Sequence) and not isinstance(answer, str):  # several annotators: one answer will do
        answer = answer[0] if answer else None
    if isinstance(answer, Mapping):
        answer = answer.get("answer", answer.get("text"))
    yield {"role": "user", "content": [_text(str(prompt))]}
    if answer is not None:
        yield {"role": "assistant", "content": [_text(str(answer))]}


def _messages(messages: Any, base_dir: Path | None) -> Conversation:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(f"messages must be a list of {{'role', 'content'}} that is not empty, not {messages!r:.80}")
    conversation: Conversation = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise ValueError(f"a message must be a dict with 'role' and 'content', not {type(message).__name__}")
        if "user" in message and "assistant" in message:  # the question and its answer in one
            for role in ("user", "assistant"):
                conversation.append({"role": role, "content": [_text(str(message[role]))]})
            continue
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if not isinstance(role, str) or content is None:
            raise ValueError(f"a message needs 'role' and 'content', this one has {sorted(message)}")
        parts = [content] if isinstance(content, (str, Mapping)) else content
        conversation.append({"role": _ROLES.get(role, role), "content": [_part(part, base_dir) for part in parts]})
    return conversation


def _part(part: Any, base_dir: Path | None) -> dict[str, Any]:
    if isinstance(part, str):
        return _text(part)
    if not isinstance(part, Mapping) or "type" not in part:
        raise ValueError(f"a content part needs a 'type' ('image' or 'text'), this one is {part!r:.80}")
    if part["type"] == "text":
        return _text(str(part.get("text", part.get("content", ""))))
    if part["type"] not in ("image", "image_url"):
        raise ValueError(f"a content part must be of type 'image' or 'text', not {part['type']!r}")
    key = next((k for k in _IMAGE_KEYS if part.get(k) is not None), None)
    if key is None:
        return {"type": "image", "image": None}  # a placeholder
    source = part[key]
    if key == "image_url" and isinstance(source, Mapping):
        source = source.get("url")
    if key == "base64":
        source = f"data:;base64,{source}"
    return {"type": "image", "image": open_image(source, base_dir)}


def _fill(conversation: Conversation, images: list[Image.Image]) -> Conversation:
    """Puts `images` into the placeholders: image parts without a source, else `<image>` in the text, else in front."""
    for message in conversation:
        parts = [p for p in message["content"] if p["type"] != "text"]
        if images and not parts:
            message["content"] = [p for part in message["content"] for p in _split_marker(part["text"])]
    slots = [p for m in conversation for p in m["content"] if p["type"] == "image" and p["image"] is None]
    if images and not slots:
        first = next((m for m in conversation if m["role"] == "user"), conversation[0])
        slots = [{"type": "image", "image": None} for _ in images]
        first["content"] = slots + first["content"]
    if len(slots) != len(images):
        raise ValueError(
            f"the messages have {len(slots)} image placeholders and the sample has {len(images)} images: "
            "give one image for each placeholder"
        )
    for slot, image in zip(slots, images):
        slot["image"] = image
    return conversation


def _split_marker(text: str) -> Iterator[dict[str, Any]]:
    for i, piece in enumerate(text.split(IMAGE_MARKER)):
        if i:
            yield {"type": "image", "image": None}
        if piece.strip():
            yield _text(piece.strip("\n"))
