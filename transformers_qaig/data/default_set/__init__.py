"""The bundled calibration set: images and conversations that travel with the package (see README.md beside)."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def load_default_set(with_images: bool = True, with_videos: bool = False) -> list[list[dict[str, Any]]]:
    """Returns the bundled conversations, with their images and videos as paths.

    Args:
        with_images: `False` leaves the images out, for a model that takes text only.
        with_videos: adds conversations about clips, for a model that takes videos.
    """
    names = ["conversations.jsonl", "clips.jsonl"] if with_videos else ["conversations.jsonl"]
    lines = [line for name in names for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]
    return [_conversation(json.loads(line), with_images) for line in lines]


def _conversation(record: dict[str, Any], with_images: bool) -> list[dict[str, Any]]:
    """Turns `{"image" or "video": file name, "turns": [[question, answer], ...]}` into chat messages, that first."""
    messages = []
    kind = "video" if "video" in record else "image"
    shown = [{"type": kind, "path": FOLDER / record[kind]}] if with_images else []
    for question, answer in record["turns"]:
        messages.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        shown = []
    return messages
