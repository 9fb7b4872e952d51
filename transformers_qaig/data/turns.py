"""Converts chat messages in the forms of public sets to turns: roles, parts, tool calls and reasoning in one form."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .columns import COLUMN_NAMES
from .images import open_image
from .video import open_video

Turn = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
_ROLE_NAMES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot", "ai", "function_call"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response", "ipython"), "tool"),
}
_TRAINS = ("weight", "train", "training", "loss")
"""Whether a turn of the assistant is an answer: OpenAI's, Axolotl's and ms-swift's word. 0 says that it is context."""
MOST_JSON = 16 << 20
"""The most characters of a text that is parsed as JSON."""
_REASONING = ("reasoning_content", "thinking", "reasoning")
_SAYS = ("content", "value", "tool_calls", "function_call", *_REASONING)
_TEXT_TYPES = ("text", "input_text", "output_text")
_TYPES = {
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
    **dict.fromkeys(("video", "video_url", "input_video"), "video"),
}
_SOURCE_KEYS = ("url", "bytes", "path", "base64", "source")


def text_part(text: str) -> dict[str, Any]:
    """Makes the content part of a text.

    Raises:
        ValueError: a tokenizer cannot read the text.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a text has half of a surrogate pair at character {error.start}: repair it, or leave the record out"
        ) from error
    return {"type": "text", "text": text}


def is_messages(value: Any) -> bool:
    """Whether `value` is a list of chat messages."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, (str, bytes))
        and len(value) > 0
        and all(isinstance(message, Mapping) and ("role" in message or "from" in message) for message in value)
    )


def _is_turn(message: Mapping[str, Any]) -> bool:
    """Whether a message has a known role and something that it says."""
    role = str(message.get("role", message.get("from"))).strip().lower()
    return (role in ROLES or role in _ROLE_NAMES) and not message.keys().isdisjoint(_SAYS)


def read_messages(messages: Any, base_dir: Path | None) -> list[Turn]:
    """Reads a list of chat messages: `role` and `content` (or `from` and `value`), or `user` and `assistant` in one.

    Args:
        messages: the list, or the same as JSON.
        base_dir: the folder that relative image paths start from.

    Returns:
        Turns: `role`, `content` (a list of parts) and whatever else the message has for the chat template:
        `tool_calls` (`{"type": "function", "function": {"name": str, "arguments": dict}}`), `tool_call_id`, `name`,
        the reasoning under both its names. `is_context` stands in a turn of the assistant that is no answer.

    Raises:
        ValueError, TypeError: a message is none of these; the text says what it was.
    """
    messages = parse_json(messages, "the list of messages")
    if isinstance(messages, Mapping) and messages and all(isinstance(value, list) for value in messages.values()):
        messages = [dict(zip(messages, values)) for values in zip(*messages.values())]  # a column of Arrow structs
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(f"messages must be a list of {{'role', 'content'}} that is not empty, not {messages!r:.80}")
    turns: list[Turn] = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise ValueError(f"a message must be a dict with 'role' and 'content', not {type(message).__name__}")
        if "user" in message and "assistant" in message:  # the question and its answer in one
            for role in ("user", "assistant"):
                turns.append({"role": role, "content": [text_part(_text_of(message[role]))]})
        else:
            turns.append(_turn(message, base_dir))
    return turns


def parse_messages(value: Any) -> Any:
    """Returns `value`, as a list if it is a JSON string of chat messages or of one; another text stays a text.

    An answer may be JSON with keys of the same names, as of a letter with `from` and `to`: no message has a known role
    and a content there.

    Raises:
        ValueError: it is JSON of a whole record, such as a line of a .jsonl file that was read as text.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        parsed = parse_json(value, "the text")
    except ValueError:
        return value
    if isinstance(parsed, dict) and any(is_messages(parsed.get(name)) for name in COLUMN_NAMES["messages"]):
        raise ValueError(
            "the text is JSON of a record with messages: parse it first, or give the .jsonl file as the dataset"
        )
    messages = [parsed] if isinstance(parsed, dict) else parsed
    return messages if is_messages(messages) and any(map(_is_turn, messages)) else value


def parse_json(value: Any, what: str) -> Any:
    """Returns `value`, parsed if it is a JSON string: sets with a fixed schema store free-form values in that way."""
    if not isinstance(value, str):
        return value
    if len(value) > MOST_JSON:
        raise ValueError(f"{what} has {len(value):,} characters of JSON: at most {MOST_JSON:,} are parsed")
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is a str but not JSON ({error}): {value!r:.80}") from error


def without_none(value: Any) -> Any:
    """Returns `value` without its entries that are None: Arrow gives every dict of a column the keys of all others."""
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, (list, tuple)) else value


def _turn(message: Mapping[str, Any], base_dir: Path | None) -> Turn:
    given = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if not isinstance(given, str):
        raise ValueError(f"a message needs 'role' and 'content', this one has {sorted(map(str, message))}")
    lowered = given.strip().lower()
    role = _ROLE_NAMES.get(lowered, lowered if lowered in ROLES else given)
    extras = {k: v for k, v in message.items() if v is not None and k not in ("role", "from", "content", "value")}
    extras = {key: value for key, value in extras.items() if key not in _TRAINS}
    if role == "assistant" and not is_answer(message):
        extras["is_context"] = True
    calls = extras.pop("tool_calls", None) or extras.pop("function_call", None)
    if lowered == "function_call":
        calls, content = parse_json(content, "the value of a 'function_call' message"), None
    if calls:
        extras["tool_calls"] = _tool_calls(calls)
    reasoning = next((extras[name] for name in _REASONING if extras.get(name)), None)
    if reasoning is not None:  # as newer Transformers do: some templates read the one name, some the other
        extras.update(reasoning_content=reasoning, thinking=extras.get("thinking") or reasoning)
    if content is None and not (role == "assistant" and (calls or reasoning)):
        raise ValueError(
            f"a message needs 'role' and 'content' (only an assistant that calls a tool may go without), this one "
            f"has {sorted(key for key, value in message.items() if value is not None)}"
        )
    return {**extras, "role": role, "content": _parts(content, role, base_dir)}


def is_answer(message: Mapping[str, Any]) -> bool:
    """Whether a message of the assistant counts as an answer, by its weight."""
    for name in _TRAINS:
        weight = message.get(name)
        if weight is not None and weight not in (0, 1):
            raise ValueError(f"the {name!r} of a message must be 0 (context) or 1 (an answer), it is {weight!r:.80}")
        if weight is not None and not weight:
            return False
    return True


def _tool_calls(calls: Any) -> list[dict[str, Any]]:
    calls = without_none(parse_json(calls, "'tool_calls'"))
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(calls, list):
        raise ValueError(f"'tool_calls' must be a list, not {type(calls).__name__}: {calls!r:.80}")
    read = []
    for call in calls:
        call = parse_json(call, "a tool call")
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(
                f"a tool call must be {{'function': {{'name': ..., 'arguments': {{...}}}}}}, this one is {call!r:.80}"
            )
        arguments = parse_json(function.get("arguments") or {}, f"the arguments of the tool call {function['name']!r}")
        extras = {key: value for key, value in call.items() if key not in ("name", "arguments", "function")}
        read.append({"type": "function", **extras, "function": {"name": function["name"], "arguments": arguments}})
    return read


def _parts(content: Any, role: str, base_dir: Path | None) -> list[dict[str, Any]]:
    if content is None:
        return []
    if role == "tool" and not isinstance(content, str) and not _has_parts(content):
        return [text_part(json.dumps(content, ensure_ascii=False))]  # a tool's result as it came
    if isinstance(content, (str, Mapping)):
        content = [content]
    if not isinstance(content, Sequence):
        raise ValueError(f"the content of a message must be a str or a list of parts, not {type(content).__name__}")
    return [_part(part, base_dir) for part in content]


def _has_parts(content: Any) -> bool:
    parts = [content] if isinstance(content, Mapping) else content
    return isinstance(parts, Sequence) and all(isinstance(part, Mapping) and "type" in part for part in parts)


def _part(part: Any, base_dir: Path | None) -> dict[str, Any]:
    if isinstance(part, str):
        return text_part(part)
    if not isinstance(part, Mapping) or "type" not in part:
        raise ValueError(f"a content part needs a 'type' ('image', 'video' or 'text'), this one is {part!r:.80}")
    if part["type"] in _TEXT_TYPES:
        return text_part(_text_of(part.get("text") if part.get("text") is not None else part.get("content")))
    kind = _TYPES.get(part["type"]) if isinstance(part["type"], str) else None
    if kind is None:
        raise ValueError(f"a content part must be of type 'image', 'video' or 'text', not {part['type']!r:.80}")
    source = _source_of(part, kind)
    if source is None:
        return {"type": kind, kind: None}  # a placeholder
    if kind == "image":
        return {"type": "image", "image": open_image(source, base_dir)}
    return {"type": "video", "video": open_video(source, base_dir, part.get("fps"))}


def _source_of(part: Mapping[str, Any], kind: str) -> Any:
    """Returns what an image or video part names: an object, a path or an address; None: it is a placeholder."""
    key = next((key for key in (kind, f"{kind}_url", *_SOURCE_KEYS) if part.get(key) is not None), None)
    if key is None:
        return None
    source = part[key]
    if key == "source" and isinstance(source, Mapping):
        # {"type": "base64", "data": ...} or {"type": "url", "url": ...}
        key, source = ("base64", source["data"]) if source.get("data") is not None else ("url", source.get("url"))
    if key == f"{kind}_url" and isinstance(source, Mapping):
        source = source.get("url")
    if key == "base64" and not str(source).startswith("data:"):
        source = f"data:;base64,{source}"
    return source


def _text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text must be a str, not {type(value).__name__}: {value!r:.80}")
    return value
