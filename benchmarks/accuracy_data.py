"""What `accuracy.py` calibrates on and asks: scenes, conversations of a file, or texts of the model itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accuracy_peers.tensors import Inputs, Spans
from torch import Tensor
from transformers import AutoProcessor, GenerationConfig

from transformers_qaig.data.samples import load_samples
from transformers_qaig.data.tensors import NO_ANSWER
from transformers_qaig.report.evaluate import Question, encode_questions

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "tiny-vlm"))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "tiny-vlm-qwen"))
from conversations import conversation
from harder_scenes import conversation as harder_conversation

HARDER = Path(__file__).resolve().parents[1] / "examples" / "tiny-vlm-qwen" / "model"
"""The model whose scenes are the harder ones."""

OWN_TOKENS = 160
"""Tokens of a text that a model makes."""


class Data(Protocol):
    """Conversations or texts, by number."""

    def samples(self, first: int, count: int) -> tuple[list[Inputs], list[Spans]]:
        """Returns the inputs of samples for calibration, and where the answers of each are."""
        ...

    def questions(self, first: int, count: int) -> list[Question]:
        """Returns questions with their answers."""
        ...


class Conversations:
    """Conversations about pictures.

    Args:
        model: folder of the model, whose processor encodes them.
        ends: token ids that end an answer.
        make: number → conversation.
    """

    def __init__(self, model: Path, ends: Sequence[int], make: Callable[[int], Any], base_dir: Path | None = None):
        self.processor, self.ends, self.make = AutoProcessor.from_pretrained(model), ends, make
        self.base_dir = base_dir or Path()

    def samples(self, first: int, count: int) -> tuple[list[Inputs], list[Spans]]:
        chats = [self.make(first + i) for i in range(count)]
        samples = load_samples(chats, self.processor, num_samples=count, seed=0, with_labels=True)
        # Most libraries would take labels for something to compute a loss from.
        return samples, [spans_of(sample.pop("labels")[0] != NO_ANSWER) for sample in samples]

    def questions(self, first: int, count: int) -> list[Question]:
        chats = [self.make(first + i) for i in range(count)]
        return encode_questions(self.processor, chats, self.ends, base_dir=self.base_dir)


class OwnTexts:
    """Texts that a language model makes by itself, token by token, from its whole distribution.

    Each is one answer: all tokens but the first.
    """

    def __init__(self, model: Any, tokens: int = OWN_TOKENS):
        self.model, self.tokens = model, tokens

    def samples(self, first: int, count: int) -> tuple[list[Inputs], list[Spans]]:
        texts = self._texts(first, count)
        return [{"input_ids": text[None]} for text in texts], [[(1, self.tokens)]] * count

    def questions(self, first: int, count: int) -> list[Question]:
        texts = self._texts(first, count)
        return [Question({"input_ids": text[None]}, 1, self.tokens, "", i) for i, text in enumerate(texts)]

    @torch.no_grad()
    def _texts(self, first: int, count: int) -> Tensor:
        """Samples int64 `[count, tokens]`."""
        start = torch.full((count, 1), self.model.config.bos_token_id)
        # The end of a story does not end the text: another one follows.
        how = GenerationConfig(do_sample=True, top_k=0, max_length=self.tokens, eos_token_id=None)
        with torch.random.fork_rng():
            torch.manual_seed(first)
            return self.model.generate(start, attention_mask=torch.ones_like(start), generation_config=how)


def data_of(name: str, folder: Path, model: Any) -> Data:
    """Makes the data that `--data` names: `scenes`, `own`, or a .jsonl file of conversations."""
    if name == "own":
        return OwnTexts(model)
    ends = model.config.get_text_config().eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    if name == "scenes":
        return Conversations(folder, ends, harder_conversation if folder.resolve() == HARDER else conversation)
    records = [json.loads(line) for line in Path(name).read_text().splitlines()]
    return Conversations(folder, ends, records.__getitem__, Path(name).parent)


def spans_of(mask: Tensor) -> Spans:
    """Finds (start, stop) of every run of True in a bool `[T]`."""
    outside = torch.zeros(1, dtype=torch.int)
    edges = mask.int().diff(prepend=outside, append=outside).nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2]))
