"""LoRA on packed weights learns as LoRA on bfloat16: the loss of 30 steps of `Trainer`, picture for picture."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments

from transformers_qaig import QAIGConfig
from transformers_qaig.execution.float32_products import Float32Products, is_slow

peft = pytest.importorskip("peft", minversion="0.21.2")
STEPS, BATCH, LEARNING_RATE = 30, 8, 2e-4


class DifferentiableProducts(Float32Products):
    """Also widens products that autograd records."""

    def _applies(self, tensors: list[torch.Tensor]) -> bool:
        return super()._applies([tensor.detach() for tensor in tensors])


@pytest.fixture
def scenes(tiny_vlm_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that draws the tiny VLM's pictures, and the one that talks about them."""
    monkeypatch.syspath_prepend(tiny_vlm_path.parent)
    import conversations as talks
    import scenes as pictures

    return pictures, talks


def examples(pictures: Any, processor: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Pictures of numbers, which shall be read backwards from now on."""
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    for seed in itertools.count():
        picture, turns = pictures.scene(seed)
        for question, answer, _ in turns:
            if question == "read the number .":
                content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
                asked = [{"role": "user", "content": content}]
                backwards = {"type": "text", "text": " ".join(reversed(answer.split()))}
                said = [*asked, {"role": "assistant", "content": [backwards]}]
                prompt = processor.apply_chat_template(asked, add_generation_prompt=True, **options)["input_ids"]
                inputs = processor.apply_chat_template(said, **options)
                labels = inputs["input_ids"][0].clone()
                labels[: prompt.shape[1]] = -100
                yield {"ids": inputs["input_ids"][0], "labels": labels, "pixels": inputs["pixel_values"]}


def collate(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    ids, labels = ([each[name] for each in batch] for name in ("ids", "labels"))
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        "pixel_values": torch.cat([each["pixels"] for each in batch]).bfloat16(),
    }


def losses(model: Any, data: list[dict[str, torch.Tensor]], folder: Path) -> list[float]:
    torch.manual_seed(0)
    lora = peft.LoraConfig(target_modules="all-linear", r=16, lora_alpha=32)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=True, remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(peft.get_peft_model(model, lora), arguments, collate, data)
    is_slow_here = is_slow(torch.bfloat16)
    with DifferentiableProducts(frozenset([torch.bfloat16])) if is_slow_here else contextlib.nullcontext():
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_every_step_has_the_loss_of_bfloat16_within_2_percent(tiny_vlm_path: Path, scenes: Any, tmp_path: Path) -> None:
    pictures, talks = scenes
    data = list(itertools.islice(examples(pictures, AutoProcessor.from_pretrained(tiny_vlm_path)), STEPS * BATCH))
    calibration = [talks.conversation(seed) for seed in range(32)]
    config = QAIGConfig(bits=4, group_size=64, dataset=calibration, num_samples=32)
    load = AutoModelForImageTextToText.from_pretrained
    dense = losses(load(tiny_vlm_path, dtype=torch.bfloat16), data, tmp_path)
    packed = losses(load(tiny_vlm_path, dtype=torch.bfloat16, quantization_config=config), data, tmp_path)
    assert len(dense) == STEPS
    assert sum(dense[-10:]) < 0.9 * sum(dense[:10]), dense
    assert packed == pytest.approx(dense, rel=0.02), [a / b - 1 for a, b in zip(packed, dense)]
