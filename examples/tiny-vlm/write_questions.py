"""Writes `questions.jsonl` and its pictures, to try `transformers-qaig evaluate` on: 32 scenes with their answers.

python examples/tiny-vlm/write_questions.py
"""

import json
from pathlib import Path
from typing import Any

from scenes import scene

HERE = Path(__file__).parent
SEEDS = range(18_000, 18_032)


def main() -> None:
    pictures = HERE / "pictures"
    pictures.mkdir(exist_ok=True)
    with (HERE / "questions.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for seed in SEEDS:
            scene(seed)[0].save(pictures / f"{seed}.jpg", quality=85)
            file.write(json.dumps(record(seed)) + "\n")


def record(seed: int) -> dict[str, Any]:
    """One line: the path of a picture, and the conversation about it."""
    messages: list[dict[str, Any]] = []
    for question, answer, task in scene(seed)[1]:
        image = [] if messages else [{"type": "image"}]
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}], "task": task})
    return {"images": [f"pictures/{seed}.jpg"], "messages": messages}


if __name__ == "__main__":
    main()
