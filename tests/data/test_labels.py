"""Which tokens of a conversation are the assistant's answers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from transformers_qaig.data.model_inputs import ModelInputs
from transformers_qaig.data.samples import answer_mask, load_samples

TEXT_MODEL = ModelInputs(has_images=False)


def _turns(*pairs: tuple[str, str]) -> list[dict]:
    picture = torch.zeros(96, 96, 3, dtype=torch.uint8).numpy()
    messages: list[dict] = []
    for question, answer in pairs:
        image = [] if messages else [{"type": "image", "image": picture}]
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


@pytest.fixture(scope="module")
def processor(tiny_vlm_path: Path):
    return AutoProcessor.from_pretrained(tiny_vlm_path)


def test_every_answer_of_a_conversation_is_marked_and_nothing_else(processor) -> None:
    two = _turns(("read the number .", "1 2 3"), ("what is the largest digit ?", "3"))
    dataset = [two, _turns(("what is this ?", "apple"))]
    first, second = load_samples(dataset, processor, num_samples=2, seed=0, with_labels=True)
    texts = []
    for sample in (first, second):
        mask = answer_mask(sample)
        runs = torch.split(sample["input_ids"][0][mask[0]], _runs(mask[0]))
        texts.append([processor.tokenizer.decode(run, skip_special_tokens=True).strip() for run in runs])
    assert texts == [["1 2 3", "3"], ["apple"]]


@pytest.mark.parametrize(("name", "value"), [("weight", 0), ("weight", 0.0), ("train", False), ("loss", False)])
def test_an_answer_of_weight_0_is_context(processor, name: str, value: object) -> None:
    turns = _turns(("read the number .", "1 2 3"), ("what is the largest digit ?", "3"))
    (plain,) = load_samples([turns], processor, num_samples=1, seed=0, with_labels=True)
    turns[1][name], turns[3]["weight"] = value, 1
    (sample,) = load_samples([turns], processor, num_samples=1, seed=0, with_labels=True)
    assert torch.equal(sample["input_ids"], plain["input_ids"])
    answer = sample["input_ids"][0][answer_mask(sample)[0]]
    assert processor.tokenizer.decode(answer, skip_special_tokens=True).strip() == "3"


def test_a_weight_is_0_or_1_and_some_answer_has_1(processor) -> None:
    turns = _turns(("what is this ?", "apple"))
    turns[1]["weight"] = 0.5
    with pytest.raises(ValueError, match=r"calibration sample 0 .*'weight' of a message must be 0 \(context\) or 1"):
        load_samples([turns], processor, num_samples=1, seed=0)
    turns[1]["weight"] = 0
    assert load_samples([turns], processor, num_samples=1, seed=0)
    with pytest.raises(ValueError, match="all turns of the assistant have the weight 0"):
        load_samples([turns], processor, num_samples=1, seed=0, with_labels=True)


def test_without_labels_every_token_but_the_images_counts(processor) -> None:
    (sample,) = load_samples([_turns(("what is this ?", "apple"))], processor, num_samples=1, seed=0)
    assert "labels" not in sample
    image = int(sample["input_ids"][0].mode().values)
    mask = answer_mask(sample, [image])
    assert not mask[0, 0]
    assert torch.equal(mask[0, 1:], sample["input_ids"][0, 1:] != image)


def test_processor_outputs_keep_their_labels_and_padding_never_counts() -> None:
    ids, labels = torch.tensor([[0, 5, 6, 7]]), torch.tensor([[-100, -100, 6, 7]])
    record = {"input_ids": ids, "labels": labels, "attention_mask": torch.tensor([[0, 1, 1, 1]])}
    (sample,) = load_samples([record], None, num_samples=1, seed=0, inputs=TEXT_MODEL, with_labels=True)
    assert answer_mask(sample).tolist() == [[False, False, True, True]]
    none_set = {**record, "labels": torch.full_like(ids, -100)}
    (sample,) = load_samples([none_set], None, num_samples=1, seed=0, inputs=TEXT_MODEL)
    assert answer_mask(sample).tolist() == [[False, True, True, True]]


def _runs(mask: torch.Tensor) -> list[int]:
    """Lengths of the runs of True."""
    edges = torch.diff(torch.nn.functional.pad(mask.int(), (1, 1)))
    return ((edges == -1).nonzero() - (edges == 1).nonzero()).flatten().tolist()
