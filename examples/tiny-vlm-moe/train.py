"""Makes the tiny VLM with experts: upcycles `examples/tiny-vlm`, then trains it to answer like it.

    python examples/tiny-vlm-moe/train.py --state state.safetensors --output examples/tiny-vlm-moe/model

The state is written as the training goes on, and an interrupted run goes on from it. Training reads scenes from seed
1,000,000 on, which nothing else does. Vision tower and projector stay as they are.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, one_hot, softmax
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from transformers_qaig.data.samples import load_samples
from transformers_qaig.data.tensors import NO_ANSWER

HERE = Path(__file__).parent
DENSE = HERE.parent / "tiny-vlm"
sys.path.insert(0, str(DENSE))

from conversations import conversation  # noqa: E402
from upcycle import EXPERTS, make_config, upcycle  # noqa: E402

FIRST_SEED = 1_000_000
BATCH = 16
BALANCE = 0.01
"""Weight of the load-balancing loss of Switch Transformers (arXiv 2101.03961, equation 4)."""


class Scenes:
    """Batches of scenes as a model's inputs with labels, the same for the same number."""

    def __init__(self) -> None:
        self.processor = AutoProcessor.from_pretrained(DENSE / "model")

    def batch(self, number: int) -> dict[str, Tensor]:
        """Returns `input_ids`, `attention_mask` and `labels`, `[B, T]`, padded on the right, and `pixel_values`."""
        first = FIRST_SEED + number * BATCH
        chats = [conversation(seed) for seed in range(first, first + BATCH)]
        samples = load_samples(chats, self.processor, num_samples=BATCH, seed=0, with_labels=True)
        padded = {"input_ids": self.processor.tokenizer.pad_token_id, "attention_mask": 0, "labels": NO_ANSWER}
        made = {
            name: pad_sequence([sample[name][0] for sample in samples], batch_first=True, padding_value=value)
            for name, value in padded.items()
        }
        return {**made, "pixel_values": torch.cat([sample["pixel_values"] for sample in samples])}


@torch.no_grad()
def embedded(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the inputs of the language model; the tower runs once for both models."""
    pictures = model.model.get_image_features(batch["pixel_values"]).pooler_output
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    places = (batch["input_ids"] == model.config.image_token_id)[..., None].expand_as(embeddings)
    return {
        "inputs_embeds": embeddings.masked_scatter(places, torch.cat([*pictures])),
        "attention_mask": batch["attention_mask"],
    }


class Routers:
    """Keeps the routers' logits of the last forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.logits: list[Tensor] = []
        for layer in model.model.language_model.layers:
            layer.mlp.gate.register_forward_hook(lambda _, inputs, outputs: self.logits.append(outputs[0]))

    def imbalance(self, mask: Tensor, routed: int) -> Tensor:
        """Returns the load-balancing loss, mean over the layers: 1 if all experts get the same; forgets the logits."""
        losses = []
        for logits in self.logits:
            probabilities = softmax(logits[mask.flatten()].float(), dim=-1)
            chosen = one_hot(probabilities.topk(routed).indices, EXPERTS).sum(1).float()
            losses.append(EXPERTS * (chosen.mean(0) / routed) @ probabilities.mean(0))
        self.logits.clear()
        return torch.stack(losses).mean()


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters of the blocks, the last norm and the head; freezes the others."""
    model.requires_grad_(False)
    embeddings = model.get_input_embeddings().weight
    found = {
        name: parameter
        for name, parameter in model.named_parameters()
        if ("language_model" in name or "lm_head" in name) and parameter is not embeddings
    }
    for parameter in found.values():
        parameter.requires_grad_(True)
    return found


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    tensors = {f"model/{n}": t.contiguous() for n, t in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in state.items()}
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, {"step": str(step)})
    temporary.replace(path)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    states: dict[int, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
        names = list(file.keys())
        model.load_state_dict({n.removeprefix("model/"): file.get_tensor(n) for n in names if n.startswith("model/")})
        for name in names:
            if name.startswith("optimizer/"):
                _, index, key = name.split("/")
                states.setdefault(int(index), {})[key] = file.get_tensor(name)
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def loss_of(
    model: nn.Module, teacher: nn.Module, routers: Routers, batch: dict[str, Any]
) -> tuple[Tensor, dict[str, float]]:
    """Returns cross entropy, plus KL from the dense model at the answers' tokens, plus the load-balancing loss."""
    inputs = embedded(teacher, batch)
    labels = batch["labels"][:, 1:]
    answers = labels != NO_ANSWER
    with torch.no_grad():
        wanted = log_softmax(teacher(**inputs, use_cache=False).logits[:, :-1][answers], dim=-1)
    # Both models have the same embeddings, which stay as they are.
    logits = model(**inputs, use_cache=False).logits[:, :-1][answers]
    entropy = cross_entropy(logits, labels[answers])
    distance = kl_div(log_softmax(logits, dim=-1), wanted, reduction="batchmean", log_target=True)
    imbalance = routers.imbalance(batch["attention_mask"].bool(), model.config.text_config.num_experts_per_tok)
    figures = {"entropy": entropy.item(), "kl": distance.item(), "imbalance": imbalance.item()}
    return 0.5 * entropy + distance + BALANCE * imbalance, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate; a cosine takes it to zero")
    parser.add_argument("--state", type=Path, required=True, help="file to go on from, written every 50 steps")
    parser.add_argument("--output", type=Path, help="folder for the trained model")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this long; go on another time")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    scenes = Scenes()
    teacher = AutoModelForImageTextToText.from_pretrained(DENSE / "model", dtype=torch.float32).eval()
    if options.state.exists():
        model = LlavaForConditionalGeneration(make_config(teacher.config))
    else:
        # These scenes are not trained on.
        model = upcycle(teacher, [embedded(teacher, scenes.batch(10_000 + i)) for i in range(20)])
    parameters = trained_parameters(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=options.rate, betas=(0.9, 0.98), weight_decay=0.01)
    step = load_state(options.state, model, optimizer) if options.state.exists() else 0
    routers = Routers(model)
    start = time.monotonic()
    while step < options.steps and time.monotonic() - start < options.seconds:
        scale = min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        optimizer.param_groups[0]["lr"] = options.rate * scale
        loss, figures = loss_of(model, teacher, routers, scenes.batch(step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        step += 1
        if step % 10 == 0 or step == 1:
            told = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            print(f"step {step}: {told}; {time.monotonic() - start:.0f} s", flush=True)
        if step % 50 == 0 or step == options.steps:
            save_state(options.state, model, optimizer, step)
    if options.output and step == options.steps:
        model.to(torch.bfloat16).save_pretrained(options.output)
        scenes.processor.save_pretrained(options.output)


if __name__ == "__main__":
    main()
