"""The accuracy benchmark's data and models: a model's own texts, a converted model, which weights count."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests import seeds

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from accuracy_data import HARDER, OwnTexts, data_of, spans_of
from accuracy_peers.common import is_quantized
from story_model import config_of, halves, weights_of


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(seeds.seed())
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=30, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_own_texts_are_the_same_each_time_and_have_one_answer(model: LlamaForCausalLM) -> None:
    data, state = OwnTexts(model, tokens=12), torch.get_rng_state()
    samples, answers = data.samples(first=5, count=3)
    again, _ = data.samples(first=5, count=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(samples, again))
    assert answers == [[(1, 12)]] * 3
    (question,) = data.questions(first=6, count=1)
    assert (question.start, question.stop, question.answer.numel()) == (1, 12, 11)
    assert not torch.equal(question.inputs["input_ids"], samples[0]["input_ids"])


@pytest.mark.parametrize(("folder", "harder"), [(HARDER, True), (HARDER.parents[1] / "tiny-vlm" / "model", False)])
def test_each_example_is_asked_about_its_own_scenes(folder: Path, harder: bool, model: LlamaForCausalLM) -> None:
    tasks = {question.task for question in data_of("scenes", folder, model).questions(first=10_000, count=12)}
    assert ({"count", "order"} <= tasks) is harder
    assert ({"caption", "read"} <= tasks) is not harder


def test_spans_are_runs_of_true() -> None:
    assert spans_of(torch.tensor([0, 1, 1, 0, 1]).bool()) == [(1, 3), (4, 5)]


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("model.layers.0.mlp.up_proj.weight", True),
        ("model.language_model.layers.11.self_attn.q_proj.weight", True),
        ("model.language_model.layers.0.mlp.gate.weight", False),
        ("model.vision_tower.encoder.layers.0.mlp.fc1.weight", False),
        ("model.embed_tokens.weight", False),
        ("lm_head.weight", False),
    ],
)
def test_weights_of_the_language_models_blocks_count(path: str, counts: bool) -> None:
    assert is_quantized(path) is counts


def test_a_models_file_is_read_in_its_order(model: LlamaForCausalLM) -> None:
    """Weights of each kind follow each other; rows of queries and keys pair neighbours there."""
    config = config_of(struct.pack("<7i", 16, 24, 2, 2, 1, 30, 64))
    expected = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    order = [name for name, _ in weights_of(config, np.zeros(10_000, dtype=np.float32))]
    assert set(order) == set(expected)

    def as_stored(name: str) -> torch.Tensor:
        weight = expected[name]
        return (
            weight.unflatten(0, (-1, 2, 4)).transpose(1, 2).flatten(0, 1)
            if "q_proj" in name or "k_proj" in name
            else weight
        )

    values = np.concatenate([as_stored(name).flatten().numpy() for name in order])
    assert all(torch.equal(expected[name], weight) for name, weight in weights_of(config, values))
    assert halves(torch.arange(8)[:, None], 4).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_a_file_with_a_head_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="another model"):
        config_of(struct.pack("<7i", 16, 24, 2, 2, 1, -30, 64))
