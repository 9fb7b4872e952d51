"""Draws the bundled calibration set: `python tools/default_set/draw.py` (needs matplotlib; the result is committed).

Every picture gets its own random stream from its name, so adding or changing one leaves the others as they are.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path

import cards
import charts
import diagrams
import documents
import maps
import nature
import numpy as np
import objects
import places
import plots
import puzzles
import screens
import shapes
import windows
from PIL import Image

# Formats as they come in the wild: charts without loss, what a camera might see as JPEG, the rest as WebP.
MODULES = {
    **dict.fromkeys([charts, plots], ".png"),
    **dict.fromkeys([documents, cards, nature, objects, places], ".jpg"),
    **dict.fromkeys([diagrams, maps, screens, windows, shapes, puzzles], ".webp"),
}
DEFAULT_OUT = Path(__file__).parents[2] / "transformers_qaig" / "data" / "default_set"


def save(image: Image.Image, path: Path) -> None:
    if path.suffix == ".png":
        image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    else:
        image.save(path, quality=82, method=6, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--only", help="draw only kinds whose name contains this")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines, size = [], 0
    for module, suffix in MODULES.items():
        for draw, count in module.DRAWINGS:
            if arguments.only and arguments.only not in draw.__name__:
                continue
            for i in range(count):
                stem = f"{draw.__name__}_{i}"
                picture = draw(np.random.default_rng(zlib.crc32(stem.encode())), i)
                path = arguments.out / (stem + suffix)
                save(picture.image.convert("RGB"), path)
                size += path.stat().st_size
                for turns in picture.conversations:
                    lines.append(json.dumps({"image": path.name, "turns": turns}, ensure_ascii=False))
    if not arguments.only:
        (arguments.out / "conversations.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} conversations, {size / 1e6:.2f} MB of images in {arguments.out}")


if __name__ == "__main__":
    main()
