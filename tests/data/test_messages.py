"""Records of the kinds that public sets are made of: read in full, or refused with what was seen and expected."""

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transformers_qaig.data.messages import to_conversation, tools_of

PICTURE = Image.new("RGB", (8, 8))
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"q": "red"}}}
USER = {"role": "user", "content": "what is it ?"}


def texts(record: Any, columns: dict[str, str] | None = None) -> list[tuple[str, str]]:
    """(role, text) of each turn, images left out."""
    return [
        (turn["role"], "".join(part["text"] for part in turn["content"] if part["type"] == "text"))
        for turn in to_conversation(record, columns)
    ]


QUESTION, ANSWER = ("user", "what is it ?"), ("assistant", "a cat")


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "what is it ?", "completion": "a cat"},
        {"prompt": [USER], "completion": [{"role": "assistant", "content": "a cat"}]},
        {"prompt": USER, "completion": {"role": "assistant", "content": "a cat"}},
        {"prompt": [USER], "completion": "a cat"},
        {"prompt": "what is it ?", "chosen": "a cat", "rejected": "a dog"},
        {"prompt": [USER], "chosen": [{"role": "assistant", "content": "a cat"}], "rejected": []},
        {"chosen": [USER, {"role": "assistant", "content": "a cat"}], "rejected": [USER]},
        {"prompt": "what is it ?", "chosen": [USER, {"role": "assistant", "content": "a cat"}]},
        {"prompt": "what is it ?", "completion": "a cat", "label": True},
        {"messages": {"role": ["user", "assistant"], "content": ["what is it ?", "a cat"]}},
        {"question": "what is it ?", "answers": {"text": ["a cat", "cat"], "answer_start": [3, 5]}},
        {"question": "what is it ?", "answer": {"value": "a cat", "aliases": ["cat"]}},
        {"conversations": [{"from": "Human", "value": "what is it ?"}, {"from": "gpt", "value": "a cat"}]},
        [{"role": "USER", "content": "what is it ?"}, {"role": "Assistant", "content": "a cat"}],
    ],
)
def test_the_same_question_and_answer(record: Any) -> None:
    assert texts(record) == [QUESTION, ANSWER]


def test_images_of_a_conversational_prompt() -> None:
    record = {
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it ?"}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}],
        "images": [PICTURE],
    }
    assert texts(record) == [QUESTION, ANSWER]
    assert to_conversation(record)[0]["content"][0]["image"].size == (8, 8)


@pytest.mark.parametrize("turn", [{}, {"content": None}, {"content": ""}])
def test_a_turn_that_calls_a_tool_needs_no_content(turn: dict[str, Any]) -> None:
    messages = [USER, {"role": "assistant", "tool_calls": [CALL], **turn}, {"role": "tool", "content": "red"}]
    _, call, result = to_conversation(messages)
    assert call["tool_calls"] == [CALL]
    assert [part["text"] for part in call["content"]] in ([], [""])
    assert result == {"role": "tool", "content": [{"type": "text", "text": "red"}]}


@pytest.mark.parametrize(
    "call",
    [
        {"tool_calls": [{"id": None, "function": {"name": "look_up", "arguments": {"q": "red", "r": None}}}]},
        {"tool_calls": [{"function": {"name": "look_up", "arguments": '{"q": "red"}'}}]},
        {"tool_calls": [{"name": "look_up", "arguments": {"q": "red"}}]},
        {"tool_calls": json.dumps([CALL])},
        {"function_call": {"name": "look_up", "arguments": '{"q": "red"}'}},
    ],
)
def test_tool_calls_in_every_form(call: dict[str, Any]) -> None:
    assert to_conversation([USER, {"role": "assistant", "content": None, **call}])[1]["tool_calls"] == [CALL]


def test_sharegpt_with_tools() -> None:
    record = {
        "conversations": [
            {"from": "human", "value": "what is it ?"},
            {"from": "function_call", "value": '{"name": "look_up", "arguments": {"q": "red"}}'},
            {"from": "observation", "value": {"colour": "red"}},
            {"from": "gpt", "value": "a cat"},
        ],
        "tools": '[{"name": "look_up"}]',
        "system": "be brief",
    }
    assert texts(record) == [
        ("system", "be brief"),
        QUESTION,
        ("assistant", ""),
        ("tool", '{"colour": "red"}'),
        ANSWER,
    ]
    assert to_conversation(record)[2]["tool_calls"] == [CALL]
    assert tools_of(record) == [{"name": "look_up"}]
    assert tools_of({**record, "tools": None}) is None


def test_what_else_a_turn_has_is_handed_on() -> None:
    for name in ("reasoning_content", "thinking", "reasoning"):
        turn = {"role": "assistant", "content": "a cat", name: "it has fur", "name": None}
        read = to_conversation([USER, turn])[1]
        assert read["reasoning_content"] == read["thinking"] == "it has fur"
        assert "name" not in read
    assert to_conversation([USER, {"role": "assistant", "thinking": "it has fur"}])[1]["content"] == []
    tool = {"role": "tool", "content": "red", "tool_call_id": "a1", "name": "look_up"}
    assert to_conversation([USER, tool])[1] == {**tool, "content": [{"type": "text", "text": "red"}]}


@pytest.mark.parametrize(
    "record",
    [
        {"choices": ["dog", "cat"], "answer": 1},
        {"choices": ["dog", "cat"], "answer": "1"},
        {"options": "['dog', 'cat']", "answer": "B"},
        {"options": ["dog", "cat"], "answer": "(B)"},
        {"choices": ["dog", "cat"], "answer": "Cat"},
        {"choices": {"label": ["A", "B"], "text": ["dog", "cat"]}, "answer": "B"},
        {"A": "dog", "B": "cat", "answer": "B"},
        {"choices": ["dog", "cat"], "correct_choice_idx": 1},
    ],
)
def test_multiple_choice(record: dict[str, Any]) -> None:
    assert texts({"question": "what is it ?", **record}) == [
        ("user", "what is it ?\nA. dog\nB. cat"),
        ("assistant", "B. cat"),
    ]


def test_what_belongs_to_a_question_is_read_with_it() -> None:
    squad = {"context": "Once there was a cat.", "question": "what is it ?", "answers": {"text": ["a cat"]}}
    assert texts(squad) == [("user", "Once there was a cat.\n\nwhat is it ?"), ANSWER]
    alpaca = {"instruction": "translate", "input": "eine Katze", "output": "a cat"}
    assert texts(alpaca) == [("user", "translate\neine Katze"), ANSWER]
    unanswerable = {"question": "what is it ?", "answers": {"text": [], "answer_start": []}}
    assert texts(unanswerable) == [QUESTION]
    only_these = {"prompt": "question", "response": "answers"}
    assert texts(squad, only_these) == [QUESTION, ANSWER]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"chosen": "Human: what ? Assistant: a cat"}, "'chosen'.*neither a prompt nor an image"),
        ({"question": ["a", "b"], "answer": ["c", "d"]}, "'question' must be a str.*is it a batch"),
        ({"question": "what ?", "answer": {"start": 3}}, r"'answer' must be .*\['start'\]"),
        ({"question": "what ?", "answer": float("nan")}, "'answer' must be .*nan"),
        ({"question": "what ?", "answer": PICTURE}, "'answer' must be .*Image"),
        ({"question": "what ?", "context": {"title": []}}, r"'context' must be .*\['title'\].*columns="),
        ({"question": "what ?", "choices": ["a", "b"], "answer": 7}, "'7', which is neither a choice"),
        ({"prompt": "what ?", "chosen": [USER, USER]}, "repeat it"),
        ({"prompt": "what ?", "completion": "a cat", "label": False}, "'label' is False.*Leave such records out"),
        ({"prompt": "what \ud83d ?", "completion": "a cat"}, "half of a surrogate pair at character 5"),
        ({"prompt": "what ?", "completion": "a cat", "label": 0}, "'label' is 0.*Leave such records out"),
        ({"prompt": "what ?", "completion": "a cat", "label": np.bool_(False)}, "'label' is .*Leave such records out"),
        ({"prompt": "what ?", "response": "a cat", "history": [["who ?", "I"]]}, "'history' holds earlier turns"),
        ({"messages": [USER], "system": 3}, "'system' must be a str"),
        ([USER, {"role": "assistant", "content": None}], "only an assistant that calls a tool.*'role'"),
        ([USER, {"role": "user", "tool_calls": [CALL]}], "needs 'role' and 'content'"),
        ([USER, {"role": "assistant", "tool_calls": 3}], "'tool_calls' must be a list, not int"),
        ([USER, {"role": "assistant", "tool_calls": [{"id": 3}]}], "a tool call must be .*'id': 3"),
        ([USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}], "of the tool call 'f'.*JSON"),
        ([{"from": "function_call", "value": "look up"}], "'function_call' message is a str but not JSON"),
        ([{"role": "user", "content": 3}], "a str or a list of parts, not int"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "a text must be a str, not NoneType"),
        ({"texts": [{"user": "a", "assistant": None}]}, "a text must be a str, not NoneType"),
        (b"abc", "not bytes"),
    ],
)
def test_refused_with_what_was_seen_and_expected(record: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        to_conversation(record)


@pytest.mark.parametrize("tools", ["look_up", 3, ["look_up"], [3]])
def test_tools_that_are_none(tools: Any) -> None:
    with pytest.raises(ValueError, match="tool"):
        tools_of({"messages": [USER], "tools": tools})


def test_text_beside_an_image_is_never_left_out_in_silence() -> None:
    record = {"image": Image.new("RGB", (4, 4)), "query_text": "what is it ?", "label_text": "a cat"}
    with pytest.raises(ValueError, match=r"'query_text'\].*columns="):
        to_conversation(record)
    assert to_conversation({"image": record["image"], "licence": "CC0"})
    read = to_conversation(record, {"image": "image", "prompt": "query_text", "response": "label_text"})
    assert read[1]["content"][0]["text"] == "a cat"


def test_a_response_goes_on_after_messages_that_ask() -> None:
    for name in ("completion", "answer", "chosen"):
        assert texts({"messages": [USER], name: "a cat"}) == [("user", "what is it ?"), ("assistant", "a cat")]


def test_a_hidden_label_is_no_answer() -> None:
    with pytest.raises(ValueError, match="neither a choice, its letter nor its index"):
        to_conversation({"question": "which ?", "image": PICTURE, "choices": ["cat", "red"], "answer": -1})
