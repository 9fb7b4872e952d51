"""A model answers the questions of its calibration data: from its whole distribution, and nothing else changes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.families import FAMILIES, build, samples
from transformers_qaig.data.calibration_data import CalibrationData
from transformers_qaig.data.own_answers import NUMBER, draw_answers, own_answers
from transformers_qaig.data.tensors import answer_mask
from transformers_qaig.structure import picture_tokens

END, WORDS = 2, 8


@pytest.fixture
def model() -> LlamaForCausalLM:
    """Says one of eight words, whatever it reads."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=END,
    )
    return LlamaForCausalLM(config).eval()


def sample(tokens: int = 12, first: int = 4, **more: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    ids = torch.arange(tokens)[None] % WORDS
    mask = torch.zeros(1, tokens, dtype=torch.bool)
    mask[:, first:] = True
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, **more}, mask


def test_answers_follow_the_question_and_end_where_the_model_ends_them(model: LlamaForCausalLM) -> None:
    inputs, mask = sample(tokens=40)
    found = draw_answers(model, inputs, mask, (), seed=0)
    assert len(found) == NUMBER
    for answer, where in found:
        assert set(answer) == {"input_ids", "attention_mask"}
        assert torch.equal(answer["input_ids"][:, :4], inputs["input_ids"][:, :4])
        assert answer["attention_mask"].shape == answer["input_ids"].shape == where.shape
        assert bool(answer["attention_mask"].all())
        assert where.nonzero()[:, 1].tolist() == list(range(4, where.shape[1]))
        said = answer["input_ids"][0, 4:].tolist()
        assert END not in said[:-1]
        assert len(said) == 36 or said[-1] == END
    assert len({where.shape for _, where in found}) > 1


def test_an_answer_is_no_longer_than_the_first_one_given(model: LlamaForCausalLM) -> None:
    inputs, mask = sample(tokens=40)
    mask[:, 6:30] = False
    assert {where.shape[1] for _, where in draw_answers(model, inputs, mask, (), seed=0)} <= {5, 6}


def test_words_are_as_frequent_as_the_model_says(model: LlamaForCausalLM) -> None:
    inputs, mask = sample(first=11)
    said = [int(a["input_ids"][0, -1]) for s in range(300) for a, _ in draw_answers(model, inputs, mask, (), seed=s)]
    with torch.no_grad():
        wanted = model(input_ids=inputs["input_ids"][:, :11]).logits[0, -1].softmax(-1)
    got = torch.bincount(torch.tensor(said), minlength=WORDS) / len(said)
    assert float((got - wanted).abs().max()) < 5 * float((wanted * (1 - wanted) / len(said)).sqrt().max())


def test_settings_of_the_model_and_generators_of_torch_stay(model: LlamaForCausalLM) -> None:
    """A penalty for repetition and the best word alone are what people chat with, not what the model says."""
    inputs, mask = sample(tokens=40)
    plain = draw_answers(model, inputs, mask, (), seed=3)
    settings = model.generation_config
    settings.repetition_penalty, settings.top_k, settings.max_length = 5.0, 1, 6
    state = torch.get_rng_state()
    again = draw_answers(model, inputs, mask, (), seed=3)
    assert model.generation_config is settings
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for (a, _), (b, _) in zip(plain, again))
    other = draw_answers(model, inputs, mask, (), seed=4)
    assert any(not torch.equal(a["input_ids"], b["input_ids"]) for (a, _), (b, _) in zip(plain, other))


def _without_answer() -> tuple[dict[str, Tensor], Tensor]:
    inputs, mask = sample()
    return inputs, torch.zeros_like(mask)


def _two_rows() -> tuple[dict[str, Tensor], Tensor]:
    inputs, mask = sample()
    return {name: value.repeat(2, 1) for name, value in inputs.items()}, mask.repeat(2, 1)


def _padding() -> tuple[dict[str, Tensor], Tensor]:
    inputs, mask = sample()
    inputs["attention_mask"][:, 0] = 0
    return inputs, mask


@pytest.mark.parametrize(
    "case",
    [
        _without_answer,
        _two_rows,
        _padding,
        lambda: sample(position_ids=torch.arange(12)[None]),
        lambda: sample(decoder_input_ids=torch.zeros(1, 3, dtype=torch.long)),
    ],
    ids=["no answer", "two rows", "padding", "a value a token", "a decoder"],
)
def test_what_cannot_be_cut_is_not_asked(model: LlamaForCausalLM, case: Any) -> None:
    inputs, mask = case()
    assert draw_answers(model, inputs, mask, (), seed=0) == []


def test_pictures_are_in_questions_alone(model: LlamaForCausalLM) -> None:
    inputs, mask = sample(tokens=8)
    assert draw_answers(model, inputs, mask, (5,), seed=0) == []
    for answer, _ in draw_answers(model, inputs, mask, (3,), seed=0):
        assert answer["input_ids"][0].tolist().count(3) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_and_reads_its_answers(family: str) -> None:
    model, processor = build(family)
    data = CalibrationData.of(samples(processor, 2))
    pictures = picture_tokens(model)
    masks = [answer_mask(one, pictures) for one in data.samples]
    asked = [mask & (mask.cumsum(1) > int(mask.sum()) - 4) for mask in masks]  # pictures come before
    data = CalibrationData.of(list(data.samples), asked)
    found = own_answers(model, data, [0, 1], pictures, 0, None)
    if family == "mllama":  # its cross-attention mask has values for each token
        assert found == {}
        return
    assert sorted(found) == list(range(2, 2 + 2 * NUMBER))
    assert [question for question, _, _ in found.values()] == [0] * NUMBER + [1] * NUMBER
    with torch.no_grad():
        for _, inputs, mask in found.values():
            assert model(**inputs).logits.shape[1] == mask.shape[1]


def test_a_model_that_cannot_generate_is_calibrated_without(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**inputs: Any) -> None:
        raise NotImplementedError("not today")

    monkeypatch.setattr(model, "generate", fail)
    inputs, mask = sample()
    assert own_answers(model, CalibrationData.of([inputs], [mask]), [0], (), 0, None) == {}
    assert "It failed: NotImplementedError: not today" in caplog.text
