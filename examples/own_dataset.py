"""
Calibrate on data of your own: `python examples/own_dataset.py`.

Writes a few conversations about pictures to a folder, as a user would have them, and quantizes the tiny VLM on them.
"""

import json
import sys
from pathlib import Path

from transformers import AutoModelForImageTextToText

from transformers_qaig import CalibrationConfig, QAIGConfig

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "out" / "own-dataset"
sys.path.insert(0, str(HERE / "tiny-vlm"))
from scenes import scene  # noqa: E402

SAMPLES = 16


def write_dataset(folder: Path) -> Path:
    """One record a line: an image, a question, an answer. Paths are relative to the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "train.jsonl"
    with file.open("w") as lines:
        for seed in range(SAMPLES):
            image, turns = scene(seed)
            image.save(folder / f"{seed}.png")
            question, answer, _ = turns[0]
            lines.write(json.dumps({"picture": f"{seed}.png", "question": question, "answer": answer}) + "\n")
    return file


def main() -> None:
    config = QAIGConfig(
        bits=3,
        group_size=64,
        dataset=str(write_dataset(OUT)),
        calibration=CalibrationConfig(columns={"image": "picture", "prompt": "question", "response": "answer"}),
        num_samples=SAMPLES,
    )
    model = AutoModelForImageTextToText.from_pretrained(HERE / "tiny-vlm" / "model", quantization_config=config)
    model.save_pretrained(OUT / "model")
    print(model.qaig_report)


if __name__ == "__main__":
    main()
