"""The pictures of `scenes.py` as chat messages."""

from typing import Any

from scenes import scene


def conversation(seed: int) -> list[dict[str, Any]]:
    """One picture with its questions and answers; the assistant's messages carry their task."""
    picture, turns = scene(seed)
    messages: list[dict[str, Any]] = []
    for question, answer, task in turns:
        image = [] if messages else [{"type": "image", "image": picture}]
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}], "task": task})
    return messages
