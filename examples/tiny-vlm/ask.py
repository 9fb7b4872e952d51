"""Ask a saved model, quantized or not, about fresh pictures: `python ask.py FOLDER [SEED ...]`."""

import sys
from textwrap import shorten

from scenes import scene
from transformers import logging, pipeline

import transformers_qaig  # noqa: F401  (makes Transformers read packed weights)

SEEDS = range(29_000, 29_008)


def main(folder: str, seeds: list[int]) -> None:
    logging.disable_progress_bar()
    pipe = pipeline("image-text-to-text", model=folder)
    print(f"{'seed':>5}  {'question':34}{'answer':24}truth")
    for seed in seeds:
        picture, turns = scene(seed)
        question, truth, _ = turns[0]
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        chat = [{"role": "user", "content": content}]
        answer = pipe(text=chat, return_full_text=False)[0]["generated_text"].strip()
        right = "" if answer == truth else "  (wrong)"
        answer, truth = (shorten(text, 22, placeholder="…") for text in (answer, truth))
        print(f"{seed:>5}  {question:34}{answer:24}{truth}{right}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], [int(seed) for seed in sys.argv[2:]] or list(SEEDS))
