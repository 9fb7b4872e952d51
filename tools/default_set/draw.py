"""Draws the bundled calibration set: `python tools/default_set/draw.py` (needs matplotlib; the result is committed).

Every picture gets its own random stream from its name, so adding or changing one leaves the others as they are.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path

import charts
import diagrams
import documents
import numpy as np

MODULES = [charts, documents, diagrams]
DEFAULT_OUT = Path(__file__).parents[2] / "transformers_qaig" / "calibration" / "default_set"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--only", help="draw only kinds whose name contains this")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines, size = [], 0
    for module in MODULES:
        for draw, count in module.DRAWINGS:
            if arguments.only and arguments.only not in draw.__name__:
                continue
            for i in range(count):
                name = f"{draw.__name__}_{i}.webp"
                picture = draw(np.random.default_rng(zlib.crc32(name.encode())), i)
                path = arguments.out / name
                picture.image.convert("RGB").save(path, quality=72, method=6)
                size += path.stat().st_size
                for turns in picture.conversations:
                    lines.append(json.dumps({"image": name, "turns": turns}, ensure_ascii=False))
    if not arguments.only:
        (arguments.out / "conversations.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} conversations, {size / 1e6:.2f} MB of images in {arguments.out}")


if __name__ == "__main__":
    main()
