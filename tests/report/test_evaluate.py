"""Answer statistics: where an answer's tokens are, and what the figures mean."""

import copy
import io
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests import seeds
from tests.data.test_template import CALL, TOOL_TEMPLATE, TOOLS, decoded, user
from tests.families import FAMILIES, build
from transformers_qaig.data.samples import load_samples
from transformers_qaig.report.batches import kl_of_batching
from transformers_qaig.report.evaluate import answer_logits, answer_statistics, encode_questions, paired_ratio


@pytest.fixture(scope="module")
def processor(tiny_vlm_path: Path) -> Any:
    return AutoProcessor.from_pretrained(tiny_vlm_path)


@pytest.fixture(scope="module")
def model(tiny_vlm_path: Path) -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(tiny_vlm_path)


@pytest.fixture(scope="module")
def noisy(model: torch.nn.Module) -> torch.nn.Module:
    """The model with its linears disturbed, as by coarse rounding."""
    noisy = copy.deepcopy(model)
    generator = seeds.generator()
    for name, weight in noisy.model.language_model.layers.named_parameters():
        if weight.dim() == 2:
            weight.data += 0.5 * weight.std() * torch.randn(weight.shape, generator=generator).to(weight)
            assert "proj" in name
    return noisy


@pytest.fixture(scope="module")
def conversations(tiny_vlm_path: Path) -> list[list[dict[str, Any]]]:
    sys.path.insert(0, str(tiny_vlm_path.parent))
    from conversations import conversation

    return [conversation(seed) for seed in range(10_000, 10_030)]


def test_a_video_is_read_as_in_calibration() -> None:
    processor = build("qwen3_vl")[1]
    video = seeds.rng().integers(0, 256, (6, 40, 60, 3), dtype=np.uint8)
    messages = [
        {"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": "what ?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a cat"}], "task": "colour"},
    ]
    (question,) = encode_questions(processor, [messages])
    (calibrated,) = load_samples([messages], processor, num_samples=1, seed=0)
    assert question.task == "colour"
    assert all(torch.equal(question.inputs[name], calibrated[name]) for name in calibrated)
    (record,) = encode_questions(processor, [{"video": video, "question": "what ?", "answer": "a cat"}])
    assert torch.equal(record.inputs["input_ids"], calibrated["input_ids"])


def test_every_turn_is_asked_alone_with_its_picture(processor: Any, conversations: list) -> None:
    questions = encode_questions(processor, conversations, [2])
    turns = [message for conversation in conversations for message in conversation if message["role"] == "assistant"]
    assert len(questions) == len(turns)
    for question, turn in zip(questions, turns):
        answer = turn["content"][0]["text"]
        assert processor.decode(question.answer) == f"{answer} </s>"
        assert question.task == turn["task"]
        assert (question.inputs["input_ids"] == 4).sum() == 64
        assert processor.decode(question.inputs["input_ids"][0]).count("USER:") == 1


def test_a_turn_of_weight_0_is_not_asked(processor: Any, conversations: list) -> None:
    first, *others = [turn for turn in conversations[0] if turn["role"] == "assistant"]
    weighed = [{**turn, "weight": 0} if turn is first else turn for turn in conversations[0]]
    assert len(encode_questions(processor, [conversations[0]])) == len(others) + 1
    assert len(encode_questions(processor, [weighed])) == len(others)
    none = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in conversations[0]]
    assert encode_questions(processor, [none]) == []


def test_answer_ends_with_the_end_token(processor: Any, conversations: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a template writes after the end of a turn is no part of the answer."""
    expected = [question.answer.tolist() for question in encode_questions(processor, conversations[:3], [2])]
    monkeypatch.setattr(processor, "chat_template", processor.chat_template + " . .")
    found = encode_questions(processor, conversations[:3], [2])
    assert [question.answer.tolist() for question in found] == expected
    unended = encode_questions(processor, conversations[:3])
    assert [question.answer.tolist()[:-2] for question in unended] == expected


def test_exact_match_is_what_greedy_decoding_gives(noisy: torch.nn.Module, processor: Any, conversations: list) -> None:
    """In float32: between two tokens as likely as each other, 16 bits choose by the shape of the batch."""
    noisy = copy.deepcopy(noisy).float()
    questions = encode_questions(processor, conversations, [2])
    statistics = answer_statistics(noisy, processor, questions, batch_size=1)
    assert 0 < statistics.exact.sum() < len(questions)
    for question, exact in zip(questions, statistics.exact):
        inputs = {name: v[:, : question.start] if v.dim() == 2 else v for name, v in question.inputs.items()}
        given = noisy.generate(**inputs, max_new_tokens=len(question.answer), do_sample=False)
        assert torch.equal(given[0, question.start :], question.answer) == exact


def test_figures_match_their_definitions(
    model: torch.nn.Module, noisy: torch.nn.Module, processor: Any, conversations: list
) -> None:
    questions = encode_questions(processor, conversations[:6], [2])
    statistics = answer_statistics(noisy, processor, questions, reference=model, batch_size=1)
    for i, question in enumerate(questions):
        where = slice(question.start - 1, question.stop - 1)
        with torch.no_grad():
            p, q = (m(**question.inputs).logits[0, where].float() for m in (noisy, model))
        kl = torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=q), torch.distributions.Categorical(logits=p)
        )
        assert statistics.kl[i] == pytest.approx(kl.mean().item(), rel=1e-3, abs=1e-6)
        assert statistics.agreement[i] == (p.argmax(-1) == q.argmax(-1)).float().mean().item()
        assert statistics.nll[i] == pytest.approx(
            torch.nn.functional.cross_entropy(p, question.answer).item(), rel=1e-3
        )
        assert statistics.exact[i] == bool((p.argmax(-1) == question.answer).all())
        assert statistics.tokens[i] == len(question.answer)


def test_reference_is_a_model_or_its_logits(
    model: torch.nn.Module, noisy: torch.nn.Module, processor: Any, conversations: list
) -> None:
    questions = encode_questions(processor, conversations[:6], [2])
    logits = answer_logits(model, questions)
    known = answer_statistics(noisy, processor, questions, reference=logits)
    fresh = answer_statistics(noisy, processor, conversations[:6], reference=model)
    np.testing.assert_array_equal(known.kl, fresh.kl)
    itself = answer_statistics(model, processor, questions, reference=logits)
    assert itself.kl.max() == 0
    assert itself.agreement.min() == 1
    assert paired_ratio(known, known)[0] == 1.0
    looked_up = answer_statistics(answer_logits(noisy, questions), processor, questions, reference=logits)
    np.testing.assert_array_equal(looked_up.kl, known.kl)
    np.testing.assert_array_equal(looked_up.nll, known.nll)


def test_batches_change_nothing(
    model: torch.nn.Module, noisy: torch.nn.Module, processor: Any, conversations: list
) -> None:
    """Questions of many lengths, in any order and any batch: nothing is padded, so nothing leaks in."""
    questions = encode_questions(processor, conversations[:8], [2])
    assert len({question.inputs["input_ids"].shape for question in questions}) > 3
    full, changed = copy.deepcopy(model).float(), copy.deepcopy(noisy).float()
    alone = answer_statistics(changed, processor, questions, reference=full, batch_size=1)
    order = seeds.rng().permutation(len(questions))
    mixed = answer_statistics(changed, processor, [questions[i] for i in order], reference=full, batch_size=32)
    for name in ("kl", "nll", "agreement"):
        np.testing.assert_allclose(getattr(mixed, name), getattr(alone, name)[order], rtol=1e-3, atol=1e-6)


def test_a_kernel_that_computes_something_else_for_several_rows_is_found(
    model: torch.nn.Module, processor: Any, conversations: list
) -> None:
    questions = encode_questions(processor, conversations[:8], [2])
    assert kl_of_batching(model, questions) < 1e-3
    assert kl_of_batching(model, questions[:1]) == 0

    def wrong(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output if len(output) == 1 else output.flip(-1)

    handle = model.lm_head.register_forward_hook(wrong)
    assert kl_of_batching(model, questions) > 1
    handle.remove()


def test_records_are_questions_too(processor: Any, conversations: list) -> None:
    """The forms that public data sets have, with their own column names."""
    user, reply = conversations[0][:2]
    picture, text = user["content"][0]["image"], user["content"][1]["text"]
    answer = reply["content"][0]["text"]
    [expected] = encode_questions(processor, [[user, reply]], [2])
    named = {"image": picture, "question": text, "answer": answer, "task": reply["task"]}
    other = {"bild": picture, "frage": text, "antwort": answer}
    columns = {"image": "bild", "prompt": "frage", "response": "antwort"}
    for found in (
        encode_questions(processor, [named], [2]),
        encode_questions(processor, [other], [2], columns=columns),
    ):
        assert {name: value.tolist() for name, value in found[0].inputs.items()} == {
            name: value.tolist() for name, value in expected.inputs.items()
        }
        assert (found[0].start, found[0].stop) == (expected.start, expected.stop)
    assert encode_questions(processor, [named], [2])[0].task == expected.task
    with pytest.raises(ValueError, match=r"conversations\[1\] is not usable.*none of the sample's keys"):
        encode_questions(processor, [named, {"bild": picture}])


def test_sets_of_datasets_streamed_and_undecoded(model: torch.nn.Module, processor: Any, conversations: list) -> None:
    user, reply = conversations[0][:2]
    file = io.BytesIO()
    user["content"][0]["image"].save(file, "png")
    image = {"bytes": file.getvalue(), "path": None}
    said = {"question": user["content"][1]["text"], "answer": reply["content"][0]["text"]}
    decoded_set = datasets.Dataset.from_list([{"image": image, **said}] * 2).cast_column("image", datasets.Image())
    undecoded_set = decoded_set.cast_column("image", datasets.Image(decode=False))
    message = {"role": "user", "content": [{"type": "image", "image": image}, user["content"][1]]}
    expected = answer_statistics(model, processor, [[user, reply]] * 2).nll
    for given in (
        decoded_set,
        undecoded_set,
        decoded_set.to_iterable_dataset(),
        undecoded_set.to_iterable_dataset(),
        ([message, reply] for _ in range(2)),
    ):
        np.testing.assert_array_equal(answer_statistics(model, processor, given).nll, expected)
    with pytest.raises(ValueError, match="conversations has no answer"):
        answer_statistics(model, processor, iter([]))


def test_trained_model_answers_and_noise_costs(
    model: torch.nn.Module, noisy: torch.nn.Module, processor: Any, conversations: list
) -> None:
    first = answer_statistics(model, processor, conversations, reference=model).summary()
    second = answer_statistics(noisy, processor, conversations, reference=model).summary()
    assert first["exact_match"]["mean"] > 0.9
    assert second["exact_match"]["mean"] < first["exact_match"]["mean"]
    assert second["kl"]["mean"] > first["kl"]["mean"] == 0
    assert set(first["tasks"]) <= {"single", "grid", "caption", "total", "compare", "read", "backwards", "largest"}
    assert "kl" not in answer_statistics(model, processor, conversations[:1]).summary()


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str) -> None:
    """Packed pixels, several tiles, cross attention: batching by equal shapes needs no table of models."""
    model, processor = build(name)
    chats = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": Image.new("RGB", (56, 56), colour)},
                    {"type": "text", "text": "what is this"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        for colour, answer in (("red", "a red cat"), ("blue", "a box"), ("green", "a red cat"))
    ]
    alone = answer_statistics(model, processor, chats, reference=model, batch_size=1)
    together = answer_statistics(model, processor, chats, reference=model, batch_size=8)
    np.testing.assert_allclose(alone.nll, together.nll, rtol=1e-3)
    assert (alone.tokens >= 2).all()


def test_refuses_what_cannot_be_measured(model: torch.nn.Module, processor: Any, conversations: list) -> None:
    with pytest.raises(ValueError, match="empty"):
        answer_statistics(model, processor, [])
    with pytest.raises(ValueError, match="batch_size"):
        answer_statistics(model, processor, conversations, batch_size=0)
    with pytest.raises(ValueError, match=r"conversations\[1\] has no assistant"):
        answer_statistics(model, processor, [conversations[0], conversations[1][:1]])
    two = [torch.zeros(1), torch.zeros(1)]
    with pytest.raises(ValueError, match="reference holds logits of 2 questions"):
        answer_statistics(model, processor, conversations, reference=two)
    questions = encode_questions(processor, conversations[:1], [2])
    with pytest.raises(ValueError, match="model holds logits of 2 questions"):
        answer_statistics(two, processor, [questions[0]])
    with pytest.raises(ValueError, match="the answer has"):
        answer_statistics([torch.zeros(1, 192)], processor, [questions[0]])


def test_tools_calls_and_results_are_in_the_question() -> None:
    processor = build("llava")[1]
    processor.chat_template = TOOL_TEMPLATE
    messages = [user("what is it ?"), CALL, {"role": "tool", "content": "red"}, {"role": "assistant", "content": "ok"}]
    called, told = encode_questions(processor, [{"messages": messages, "tools": TOOLS}])
    assert "call look_up" in decoded(processor, called.answer)
    for question in (called, told):
        assert "look it up" in decoded(processor, question.inputs["input_ids"])
    text = decoded(processor, told.inputs["input_ids"])
    assert text.index("call look_up") < text.index("tool: red") < text.index("assistant: ok")
    assert "ok" in decoded(processor, told.answer)
    assert "red" not in decoded(processor, told.answer)
