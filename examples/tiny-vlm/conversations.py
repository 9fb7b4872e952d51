"""The pictures of `scenes.py` as chat messages."""

from collections.abc import Callable
from typing import Any

from PIL import Image
from scenes import scene

Scene = Callable[[int], tuple[Image.Image, list[tuple[str, str, str]]]]


def conversation(seed: int, scene: Scene = scene) -> list[dict[str, Any]]:
    """One picture with its questions and answers; the assistant's messages carry their task."""
    picture, turns = scene(seed)
    messages: list[dict[str, Any]] = []
    for question, answer, task in turns:
        image = [] if messages else [{"type": "image", "image": picture}]
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}], "task": task})
    return messages
