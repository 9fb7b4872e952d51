"""The bundled calibration set: images and conversations that travel with the package (see README.md beside)."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def load_default_set(with_images: bool = True) -> list[list[dict[str, Any]]]:
    """Returns the bundled conversations, with their images as paths.

    Args:
        with_images: `False` leaves the images out, for a model that takes text only.
    """
    lines = (FOLDER / "conversations.jsonl").read_text(encoding="utf-8").splitlines()
    return [_conversation(json.loads(line), with_images) for line in lines]


def _conversation(record: dict[str, Any], with_images: bool) -> list[dict[str, Any]]:
    """Turns `{"image": file name, "turns": [[question, answer], ...]}` into chat messages, the image first."""
    messages = []
    image = [{"type": "image", "path": FOLDER / record["image"]}] if with_images else []
    for question, answer in record["turns"]:
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        image = []
    return messages
