"""`transformers-qaig evaluate` against figures made from logits by hand: one question at a time, in float64."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests import seeds
from transformers_qaig import QAIGConfig
from transformers_qaig_cli import main

SEEDS = range(14_000, 14_032)  # fewer give no standard error


@pytest.fixture
def scenes(tiny_vlm_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(tiny_vlm_path.parent))
    import scenes

    yield scenes
    sys.modules.pop("scenes")


@torch.no_grad()
def disturbed(model: Any) -> Any:
    """The model with noise in its linears: its answers differ from those of a model at 3 bits."""
    generator = seeds.generator()
    for weight in model.model.language_model.layers.parameters():
        if weight.dim() == 2:
            weight += 1.0 * weight.std() * torch.randn(weight.shape, generator=generator)
    return model


@torch.no_grad()
def log_probabilities(model: Any, processor: Any, picture: Any, question: str, answer: str) -> tuple[Any, Any]:
    """Log-probabilities `[A, V]` at the tokens of an answer, and these tokens `[A]`, both of numpy."""
    vision, tokenizer = model.config.vision_config, processor.tokenizer
    pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"].to(model.dtype)
    image = processor.image_token * (vision.image_size // vision.patch_size) ** 2
    prompt = tokenizer(f"<s> USER: {image} {question} ASSISTANT:", add_special_tokens=False)["input_ids"]
    said = [*tokenizer(answer, add_special_tokens=False)["input_ids"], model.generation_config.eos_token_id]
    logits = model(input_ids=torch.tensor([prompt + said]), pixel_values=pixels, use_cache=False).logits[0]
    rows = logits[len(prompt) - 1 : -1].double().numpy()
    return rows - np.logaddexp.reduce(rows, axis=-1, keepdims=True), np.array(said)


def of_all(numbers: np.ndarray) -> dict[str, float]:
    """Means over all tokens or questions of rows KL, agreement, NLL, the reference's NLL, exactness of both, tokens."""
    kl, agreement, nll, theirs, exact, theirs_exact, tokens = numbers
    return {
        "kl": kl.sum() / tokens.sum(),
        "agreement": agreement.sum() / tokens.sum(),
        "perplexity": np.exp(nll.sum() / tokens.sum()),
        "exact_match": exact.mean(),
        "perplexity_ratio": np.exp((nll - theirs).sum() / tokens.sum()),
        "exact_difference": (exact - theirs_exact).mean(),
    }


@pytest.mark.slow
def test_every_figure_equals_one_made_by_hand(scenes: Any, tiny_vlm_path: Path, tmp_path: Path) -> None:
    config = QAIGConfig(bits=3, group_size=64, recipe="rtn")
    packed = AutoModelForImageTextToText.from_pretrained(tiny_vlm_path, quantization_config=config)
    packed.save_pretrained(tmp_path / "packed")
    full = disturbed(AutoModelForImageTextToText.from_pretrained(tiny_vlm_path))
    full.save_pretrained(tmp_path / "full")
    processor, rows, owners, records = AutoProcessor.from_pretrained(tiny_vlm_path), [], [], []
    for seed in SEEDS:
        picture, turns = scenes.scene(seed)
        picture.save(tmp_path / f"{seed}.png")
        for question, answer, task in turns:
            q, said = log_probabilities(full, processor, picture, question, answer)
            p, _ = log_probabilities(packed, processor, picture, question, answer)
            at = np.arange(len(said))
            rows.append(
                [
                    (np.exp(q) * (q - p)).sum(), (q.argmax(-1) == p.argmax(-1)).sum(), -p[at, said].sum(),
                    -q[at, said].sum(), (p.argmax(-1) == said).all(), (q.argmax(-1) == said).all(), len(said),
                ]
            )  # fmt: skip
            owners.append(seed)
            records.append({"image": f"{seed}.png", "question": question, "answer": answer, "task": task})
    file, output = tmp_path / "data.jsonl", tmp_path / "figures.json"
    # One record a picture: the bootstrap resamples pictures.
    file.write_text("".join(json.dumps(record) + "\n" for record in as_conversations(records)))
    arguments = ["--dataset", str(file), "--reference", str(tmp_path / "full"), "--batch-size", "1", "--quiet"]
    assert main(["evaluate", str(tmp_path / "packed"), *arguments, "--output", str(output)]) == 0
    found, numbers, owner = json.loads(output.read_text()), np.array(rows, dtype=float).T, np.array(owners)

    expected = of_all(numbers)
    assert 0 < expected["agreement"] < 1
    for name in ("kl", "agreement", "perplexity", "exact_match"):
        assert found[name]["mean"] == pytest.approx(expected[name], rel=1e-9), name
    paired = {"perplexity": "perplexity_ratio", "exact_match": "exact_difference"}
    for name, ours in paired.items():
        assert found["paired"][name][0] == pytest.approx(expected[ours], rel=1e-9), name
    picked = np.random.default_rng(1).integers(0, len(SEEDS), (2000, len(SEEDS)))
    places = [np.flatnonzero(owner == seed) for seed in SEEDS]
    resampled = [of_all(numbers[:, np.concatenate([places[k] for k in pick])]) for pick in picked]
    for name in ("kl", "agreement", "perplexity", "exact_match"):
        error = np.std([one[name] for one in resampled])
        assert found[name]["standard_error"] == pytest.approx(error, rel=0.15), name
    for name, ours in paired.items():
        values = np.array([one[ours] for one in resampled])
        assert found["paired"][name][1:] == pytest.approx(
            np.quantile(values, [0.025, 0.975]), abs=0.3 * values.std()
        ), name


def as_conversations(records: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The questions about one picture as turns of one conversation."""
    chats: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        messages = chats.setdefault(record["image"], [])
        image = [] if messages else [{"type": "image", "image": record["image"]}]
        messages += [
            {"role": "user", "content": [*image, {"type": "text", "text": record["question"]}]},
            {"role": "assistant", "content": record["answer"], "task": record["task"]},
        ]
    return [{"messages": messages} for messages in chats.values()]
