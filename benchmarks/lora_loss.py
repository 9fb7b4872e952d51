"""
LoRA on packed models beside LoRA on the bfloat16 model: the loss of every step, of `Trainer` and of TRL's `SFTTrainer`.

    pip install peft trl datasets
    python benchmarks/lora_loss.py > rows.jsonl

The tiny VLM learns from pictures that "read the number" now means to read it backwards. Seeds, pictures, order and
settings are the same for every row; only the base weights differ. `other-adapters` is bfloat16 again, with adapters
that another seed begins. Adapters are float32, as PEFT makes them, and all else is bfloat16, except in the row of
float32. A CPU without products of 16 bits computes them in float32 and rounds each once. `fresh` is the share of
other scenes that are answered exactly. With
`Trainer` the first model of each base is also saved at half of the steps, resumed from there, and its adapter is
reloaded. A logit or a loss that differs by a bit ends the benchmark.
One JSON line per row on standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from ledger import PACKAGES, provenance
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from transformers_qaig import QAIGConfig
from transformers_qaig.execution.float32_products import Float32Products, is_slow
from transformers_qaig.kernels import extension

TINY_VLM = Path(__file__).parents[1] / "examples" / "tiny-vlm"
sys.path.insert(0, str(TINY_VLM))
from conversations import conversation  # noqa: E402
from scenes import scene  # noqa: E402

MODEL = TINY_VLM / "model"
QUESTION = "read the number ."
TRAINING, FRESH = range(10_000), range(20_000, 30_000)
BASES: dict[str, dict[str, Any] | None] = {
    "bfloat16": None,
    "float32": None,
    "other-adapters": None,
    "widths": {},
    "w4": {"bits": 4},
    "w3": {"bits": 3},
}
"""Name → what `QAIGConfig` says of bits, if the base is packed.

float32 says how far rounding to bfloat16 moves a loss by itself, other adapters how far another random start does.
"""

Example = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", nargs="+", default=["Trainer", "SFTTrainer"], choices=["Trainer", "SFTTrainer"])
    parser.add_argument("--bases", nargs="+", default=list(BASES), choices=BASES)
    parser.add_argument("--samples", type=int, default=32, help="scenes of the calibration set")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8, help="pictures a step")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the adapters and of the pictures' order")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--fresh", type=int, default=100, help="other scenes that are answered afterwards, or 0")
    parser.add_argument("--unchecked", action="store_true", help="resume and reload nothing")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    print(json.dumps(provenance((*PACKAGES, "peft", "trl", "accelerate"))), flush=True)
    with tempfile.TemporaryDirectory() as folder, products():
        for row in rows(options, Path(folder)):
            print(json.dumps(row), flush=True)


def rows(options: argparse.Namespace, folder: Path) -> Iterator[Example]:
    processor = AutoProcessor.from_pretrained(MODEL)
    training, fresh = examples(TRAINING, options.steps * options.batch), examples(FRESH, options.fresh)
    for name in options.bases:
        base = folder / name
        save_base(name, base, options.samples)
        before = share_right(load(base), processor, fresh)
        is_checked = options.unchecked
        for kind, rate, seed in itertools.product(options.trainers, options.learning_rates, options.seeds):
            adapters = seed + 1000 if name == "other-adapters" else seed
            settings = {**vars(options), "learning_rate": rate, "seed": seed, "adapter_seed": adapters}
            run = folder / name / f"{kind}-{rate}-{seed}"
            make = functools.partial(make_trainer, kind, processor=processor, training=training, options=settings)
            trainer = make(load(base), output=run / "trained")
            with contextlib.redirect_stdout(sys.stderr):  # the trainers print their losses, too
                trainer.train()
                if kind == "Trainer" and not is_checked:
                    is_checked = True
                    check_resumed(trainer, make(load(base), output=run / "resumed"), base)
            yield {
                "trainer": kind,
                "base": name,
                "losses": losses_of(trainer),
                "fresh": share_right(trainer.model, processor, fresh),
                "fresh_before": before,
                "rank": options.rank,
                "batch": options.batch,
                "learning_rate": rate,
                "seed": seed,
                "cpu_isa": extension.cpu_isa(),
            }


def products() -> contextlib.AbstractContextManager[object]:
    """Returns a context in which a CPU without products of bfloat16 computes them, and their gradients, in float32."""
    return DifferentiableProducts(frozenset([torch.bfloat16])) if is_slow(torch.bfloat16) else contextlib.nullcontext()


class DifferentiableProducts(Float32Products):
    """Also widens products that autograd records: nothing here computes one again in the backward pass."""

    def _applies(self, tensors: list[torch.Tensor]) -> bool:
        return super()._applies([tensor.detach() for tensor in tensors])


def examples(seeds: range, count: int) -> list[Example]:
    """Pictures of numbers and what shall be said of them, as TRL names the columns."""
    found: list[Example] = []
    for seed in seeds if count else ():
        picture, turns = scene(seed)
        for answer in (answer for question, answer, _ in turns if question == QUESTION):
            backwards = " ".join(reversed(answer.split()))
            content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
            found.append({
                "images": [picture],
                "prompt": [{"role": "user", "content": content}],
                "completion": [{"role": "assistant", "content": [{"type": "text", "text": backwards}]}],
            })  # fmt: skip
        if len(found) == count:
            break
    if len(found) == count:
        return found
    raise ValueError(f"There are {len(found)} pictures of numbers, {count} are asked for.")


def save_base(name: str, folder: Path, samples: int) -> None:
    """Saves the tiny VLM as it is, or packed with the recipe `default`."""
    kind: dict[str, Any] = {}
    if (bits := BASES[name]) is not None:
        data = [conversation(seed) for seed in range(samples)]
        kind["quantization_config"] = QAIGConfig(**bits, group_size=64, dataset=data, num_samples=samples)
    dtype = torch.float32 if name == "float32" else torch.bfloat16
    AutoModelForImageTextToText.from_pretrained(MODEL, dtype=dtype, **kind).save_pretrained(folder)


def load(base: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(base, dtype="auto")


def make_trainer(
    kind: str, base: Any, processor: Any, training: list[Example], output: Path, options: Example
) -> Trainer:
    """A trainer of new adapters on `base`. `options` are those of the command line, for one learning rate and seed."""
    torch.manual_seed(options["adapter_seed"])
    settings: dict[str, Any] = {
        "output_dir": output,
        "max_steps": options["steps"],
        "per_device_train_batch_size": options["batch"],
        "learning_rate": options["learning_rate"],
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_steps": options["steps"] // 2,
        "seed": options["seed"],
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }
    adapters = LoraConfig(target_modules="all-linear", r=options["rank"], lora_alpha=2 * options["rank"])
    data = Dataset.from_list(training)
    if kind == "Trainer":
        collate = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
        return Trainer(get_peft_model(base, adapters), TrainingArguments(**settings), collate, data)
    arguments = SFTConfig(**settings, bf16=False, gradient_checkpointing=False, max_length=None)
    return SFTTrainer(base, arguments, train_dataset=data, processing_class=processor, peft_config=adapters)


def losses_of(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def check_resumed(trained: Trainer, resumed: Trainer, base: Path) -> None:
    """
    Resumes a training at its first checkpoint, and reloads its adapter.

    Args:
        trained: a trainer that has trained.
        resumed: a new one of the same model, data and settings.
        base: folder of the model under the adapters.

    Raises:
        RuntimeError: a loss or a logit differs by a bit.
    """
    folder = Path(trained.args.output_dir)
    first, last = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    resumed.train(resume_from_checkpoint=str(first))
    reloaded = PeftModel.from_pretrained(load(base), last)
    inputs = next(iter(trained.get_train_dataloader()))
    expected = logits_of(trained.model, inputs)
    for name, model in (("resumed", resumed.model), ("reloaded", reloaded)):
        if not torch.equal(logits_of(model, inputs), expected):
            raise RuntimeError(f"The {name} model has other logits.")
    if losses_of(resumed) != losses_of(trained):
        raise RuntimeError(f"The losses are {losses_of(trained)}, and after resuming {losses_of(resumed)}.")


@torch.no_grad()
def logits_of(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.eval()(**inputs).logits


@torch.no_grad()
def share_right(model: Any, processor: Any, questions: list[Example]) -> float | None:
    """Share of questions that are answered exactly; None of no questions."""
    if not questions:
        return None
    right = 0
    for question in questions:
        content = [{"type": "image", "image": question["images"][0]}, {"type": "text", "text": QUESTION}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        inputs = inputs.to(model.dtype)
        said = model.eval().generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        right += (
            processor.decode(said, skip_special_tokens=True).strip() == question["completion"][0]["content"][0]["text"]
        )
    return right / len(questions)


if __name__ == "__main__":
    main()
