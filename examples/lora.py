"""
Train a LoRA adapter on a 4-bit model: `python examples/lora.py`. Needs `pip install peft`.

The tiny VLM learns that "read the number" now means to read it backwards. The packed weights stay as they are.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from PIL.Image import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from transformers_qaig import QAIGConfig

HERE = Path(__file__).resolve().parent
MODEL = HERE / "tiny-vlm" / "model"
OUT = HERE.parent / "out" / "lora"
sys.path.insert(0, str(HERE / "tiny-vlm"))
from scenes import scene  # noqa: E402

QUESTION = "read the number ."
PICTURES, QUESTIONS = 240, 20
TRAINING, FRESH = range(0, 10_000), range(20_000, 30_000)


def numbers(seeds: range, count: int) -> list[tuple[Image, str]]:
    """Pictures of numbers, and their digits backwards."""
    found: list[tuple[Image, str]] = []
    for seed in seeds:
        picture, turns = scene(seed)
        answers = [answer for question, answer, _ in turns if question == QUESTION]
        if answers:
            found.append((picture, " ".join(reversed(answers[0].split()))))
        if len(found) == count:
            break
    return found


def encode(processor: Any, picture: Image, answer: str | None = None) -> dict[str, torch.Tensor]:
    """Model inputs of a question, and of its answer if there is one: then with labels on the answer's tokens alone."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
    chat: list[dict[str, Any]] = [{"role": "user", "content": content}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True, **options)
    if answer is None:
        return dict(prompt)
    chat.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    inputs = dict(processor.apply_chat_template(chat, **options))
    inputs["labels"] = inputs["input_ids"].clone()
    inputs["labels"][:, : prompt["input_ids"].shape[1]] = -100
    return inputs


@torch.no_grad()
def share_right(model: Any, processor: Any, questions: list[tuple[Image, str]]) -> float:
    """Share of questions that the model answers exactly."""
    right = 0
    for picture, answer in questions:
        inputs = encode(processor, picture)
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        right += processor.decode(tokens, skip_special_tokens=True).strip() == answer
    return right / len(questions)


def main() -> None:
    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(MODEL)
    base = AutoModelForImageTextToText.from_pretrained(
        MODEL, quantization_config=QAIGConfig(bits=4, group_size=64, recipe="rtn"), dtype=torch.float32
    )
    model = get_peft_model(base, LoraConfig(target_modules="all-linear", r=16, lora_alpha=32))
    model.print_trainable_parameters()
    fresh = numbers(FRESH, QUESTIONS)
    print(f"right before training: {share_right(model, processor, fresh):.0%}")
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    model.train()
    total = 0.0
    for index, (picture, answer) in enumerate(numbers(TRAINING, PICTURES), start=1):
        loss = model(**encode(processor, picture, answer)).loss
        loss.backward()
        total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        if index % 40 == 0:
            print(f"{index:3} pictures, mean loss of the last 40: {total / 40:.3f}")
            total = 0.0
    model.eval()
    print(f"right after training: {share_right(model, processor, fresh):.0%}")
    model.save_pretrained(OUT)
    print(f"adapter saved: {OUT}")


if __name__ == "__main__":
    main()
