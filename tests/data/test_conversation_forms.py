"""Every form of a conversation, and of a record with columns."""

import json
from typing import Any

import pytest
from PIL import Image

from tests.data.loading import conversation, one, same
from transformers_qaig.data.messages import to_conversation
from transformers_qaig.data.model_inputs import ModelInputs
from transformers_qaig.data.turns import MOST_JSON


def test_a_conversation_is_what_the_processor_makes_of_it(processor: Any, picture: Image.Image) -> None:
    messages = conversation(picture)
    want = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    sample = one([messages], processor)
    assert same(sample, dict(want))
    assert sample["input_ids"][0, -1] == processor.tokenizer.eos_token_id  # the answer is in, no new turn is opened


def test_every_form_gives_the_same_sample(processor: Any, picture: Image.Image) -> None:
    question, answer = "how many cats are there ?", "2"
    placeholder = {"type": "image"}
    forms: list[Any] = [
        {"messages": conversation(picture)},
        {"messages": [*conversation(picture)[:1], {"role": "assistant", "content": answer}]},
        {
            "messages": [{"role": "user", "content": [placeholder, question]}, *conversation(picture)[1:]],
            "images": [picture],
        },
        {"messages": [{"role": "user", "content": question}, *conversation(picture)[1:]], "images": [picture]},
        {
            "conversations": [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}],
            "image": picture,
        },
        {"texts": [{"user": question, "assistant": answer}], "images": [picture]},
        {"image": picture, "question": question, "answer": answer},
        {"image": picture, "question": question, "answers": [{"answer": answer}, {"answer": "3"}]},
        {"images": [picture], "query": question, "label": [answer]},
    ]
    want = one([conversation(picture)], processor)
    for form in forms:
        assert same(one([form], processor), want), form


def test_messages_may_be_json(processor: Any) -> None:
    turns = [{"role": "user", "content": "how many cats are there ?"}, {"role": "assistant", "content": "2"}]
    text, want = json.dumps(turns), one([turns], processor, inputs=ModelInputs(has_images=False))
    for form in (
        {"messages": text},
        {"conversations": text},
        {"prompt": json.dumps(turns[:1]), "completion": json.dumps(turns[1])},
        {"prompt": turns[:1], "chosen": text},
    ):
        assert same(one([form], processor, inputs=ModelInputs(has_images=False)), want), form
    assert same(one([text], processor, inputs=ModelInputs(has_images=False)), want)
    assert to_conversation(json.dumps(turns[0])) == to_conversation(turns[:1])


@pytest.mark.parametrize(
    "answer",
    [
        [{"cats": 2}],
        {"from": "Rome", "to": "Paris"},
        [{"from": "ann@example.com", "content": "hello"}],
        {"role": "admin", "value": 3},
        {"role": "user", "name": "ann"},
        [{"role": ["user"]}],
    ],
)
def test_json_that_is_no_message_stays_a_text(answer: Any) -> None:
    text = json.dumps(answer)
    for record in ({"prompt": "what is it ?", "completion": text}, {"prompt": text, "completion": text}):
        assert to_conversation(record)[1]["content"] == [{"type": "text", "text": text}]
    assert to_conversation(text)[0]["content"] == [{"type": "text", "text": text}]


@pytest.mark.parametrize("wrap", [lambda line: line, lambda line: {"text": line}, lambda line: {"prompt": line}])
def test_a_line_of_jsonl_that_was_read_as_text_is_refused(processor: Any, wrap: Any) -> None:
    line = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    with pytest.raises(ValueError, match=r"calibration sample 0 .* JSON of a record with messages: parse it first"):
        one([wrap(line)], processor, inputs=ModelInputs(has_images=False))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[{'role': 'user'}]", "the list of messages is a str but not JSON"),
        ("[" * 100_000, "the list of messages is a str but not JSON"),
        (f'"{"x" * MOST_JSON}"', "the list of messages has 16,777,218 characters of JSON: at most"),
        ('"a"', "messages must be a list of"),
    ],
)
def test_what_is_no_json_of_messages_is_named(processor: Any, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"calibration sample 0 .*{says}"):
        one([{"messages": text}], processor, inputs=ModelInputs(has_images=False))


def test_column_map(processor: Any, picture: Image.Image) -> None:
    record = {"image": "not this", "bild": picture, "frage": "how many cats are there ?", "antwort": "2"}
    columns = {"image": "bild", "prompt": "frage", "response": "antwort"}
    assert same(one([record], processor, columns=columns), one([conversation(picture)], processor))


def test_two_images_fill_their_placeholders_in_order(processor: Any) -> None:
    red, blue = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    record = {"messages": [{"role": "user", "content": "left <image> right <image> which ?"}], "images": [red, blue]}
    pixels = one([record], processor)["pixel_values"]
    assert pixels.shape[0] == 2
    assert pixels[0, 0].mean() > pixels[0, 2].mean()
    assert pixels[1, 0].mean() < pixels[1, 2].mean()


def test_bare_images_and_captions(processor: Any, picture: Image.Image) -> None:
    assert "pixel_values" in one([picture], processor)
    caption = one([{"image": picture, "caption": "a cat"}], processor)
    assert caption["input_ids"].shape[1] > one([picture], processor)["input_ids"].shape[1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"imge": "picture"}, "unknown part 'imge'.*Did you mean 'image'"),
        ({"image": "foto"}, r"columns\['image'\] is 'foto', but the sample has only \['picture'\]"),
    ],
)
def test_bad_column_maps(processor: Any, picture: Image.Image, columns: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one([{"picture": picture}], processor, columns=columns)
