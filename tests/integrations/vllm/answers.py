"""What Transformers answers to the same questions, and how clearly."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

TIE = {torch.float32: 2e-3, torch.bfloat16: 0.25}
"""How near two logits are that another order of summing may swap."""


def questions(count: int) -> list[tuple[Any, str]]:
    """Pictures that no other test asks about, each with its first question."""
    from conversations import conversation

    asked = [conversation(seed)[0]["content"] for seed in range(41_000, 41_000 + count)]
    return [(content[0]["image"], content[1]["text"]) for content in asked]


class Answers:
    """A model in Transformers."""

    def __init__(self, folder: Path, dtype: torch.dtype):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
        self.dtype = dtype

    @torch.no_grad()
    def disagreement(self, picture: Any, question: str, theirs: list[int]) -> str:
        """Says where the engine's answer is not the one that this model gives; nothing if it is, or if logits tie.

        One forward pass shows what this model says after every token of the engine's answer. If that is the engine's
        next token each time, both answers are the same.
        """
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        answer = torch.tensor([theirs])
        for name in ("input_ids", "attention_mask"):
            more = answer if name == "input_ids" else torch.ones_like(answer)
            inputs[name] = torch.cat([inputs[name], more], -1)
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = F.pad(inputs["mm_token_type_ids"], (0, len(theirs)))
        logits = self.model(**inputs, logits_to_keep=len(theirs) + 1).logits[0, :-1].float()
        behind = logits.amax(-1) - logits.gather(-1, answer.T).squeeze(-1)
        if not bool((behind > TIE[self.dtype]).any()):
            return ""
        text = self.processor.tokenizer.decode(theirs)
        return f"{question!r}: the engine says {text!r}, whose tokens are behind ours by {behind.tolist()}"
