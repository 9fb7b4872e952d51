"""Trains the tiny Qwen2.5-VL on answers, from the tower of `distil.py` and the tiny VLM's language model.

    python examples/tiny-vlm-qwen/train.py --tower tower --state state.safetensors --output examples/tiny-vlm-qwen/model

The state is written as the training goes on, and an interrupted run goes on from it. One scene in twelve is one of the
tiny VLM's own. It prints the exact match on each kind of question, measured before a step trains on it.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from harder_scenes import scene as harder_scene
from loop import FIRST_SEED, optimizers_of, options_of, train
from match import match_names
from pictures import make_fast
from start import make_processor
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText

from transformers_qaig.data.samples import load_samples
from transformers_qaig.data.tensors import NO_ANSWER

sys.path.insert(0, str(Path(__file__).parents[1] / "tiny-vlm"))

from conversations import conversation

BATCH, MULTIPLE = 16, 16
FIRST = FIRST_SEED + 100_000
"""Seed of the first scene; the tower was trained on those before."""


def batch_of(processor: Any, number: int) -> tuple[dict[str, Tensor], Tensor, list[str]]:
    """Returns a model's inputs, labels `[B, T]`, and the kind of each question; T is padded to a multiple of 16."""
    seeds = range(FIRST + number * BATCH, FIRST + (number + 1) * BATCH)
    harder = partial(harder_scene, each=2, weights=(8, 4, 1))
    chats = [conversation(seed, harder) if seed % 12 else conversation(seed) for seed in seeds]
    samples = load_samples(chats, processor, num_samples=BATCH, seed=0, with_labels=True)
    length = max(sample["input_ids"].shape[1] for sample in samples)
    length = -(-length // MULTIPLE) * MULTIPLE
    fill = {"input_ids": processor.tokenizer.pad_token_id, "mm_token_type_ids": 0, "labels": NO_ANSWER}
    made = {
        name: pad_sequence(
            [pad(sample[name][0], (0, length - sample[name].shape[1]), value=value) for sample in samples], True
        )
        for name, value in fill.items()
    }
    made |= {name: torch.cat([sample[name] for sample in samples]) for name in ("pixel_values", "image_grid_thw")}
    tasks = [message["task"] for chat in chats for message in chat if message["role"] == "assistant"]
    return made, made.pop("labels"), tasks


def exact_matches(right: Tensor, answers: Tensor) -> list[float]:
    """Returns 1 for each answer whose every token is right, else 0.

    Args:
        right: bool `[B, T]`.
        answers: bool `[B, T]`, whether a token is of an answer.
    """
    found = []
    for marks, inside in zip(right.tolist(), answers.tolist()):
        runs = groupby(zip(marks, inside), key=lambda pair: pair[1])
        found += [float(all(mark for mark, _ in run)) for is_answer, run in runs if is_answer]
    return found


def main() -> None:
    parser = options_of(__doc__, steps=1350, rate=9e-4)
    parser.add_argument("--tower", type=Path, required=True, help="what distil.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for the trained model")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    processor = make_processor()
    model = AutoModelForImageTextToText.from_pretrained(options.tower, dtype=torch.float32)
    if not options.state.exists():
        match_names(model, processor)
    make_fast(model.model.visual)
    for layer in model.model.language_model.layers:
        layer.compile(dynamic=False)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        inputs, labels, tasks = batch_of(processor, step)
        # Padding stands behind all answers, so it needs no mask.
        logits = model(**inputs, use_cache=False).logits[:, :-1]
        labels = labels[:, 1:]
        answers = labels != NO_ANSWER
        loss = cross_entropy(logits[answers], labels[answers])
        exact: dict[str, list[float]] = {}
        for task, match in zip(tasks, exact_matches(logits.argmax(-1) == labels, answers), strict=True):
            exact.setdefault(task, []).append(match)
        return loss, {"entropy": loss.item(), **{task: sum(found) / len(found) for task, found in exact.items()}}

    matrices = [parameter for parameter in model.model.visual.blocks.parameters() if parameter.ndim == 2]
    if train(model, optimizers_of(model, matrices, options.rate), loss_of, options):
        model.config.text_config.dtype = model.config.vision_config.dtype = torch.bfloat16
        model.to(torch.bfloat16).save_pretrained(options.output)
        processor.save_pretrained(options.output)


if __name__ == "__main__":
    main()
