"""Nothing that the assistant says is lost on its way through a chat template."""

import logging
from typing import Any

import pytest
import torch
from PIL import Image

from tests.families import build
from transformers_qaig.data.model_inputs import ModelInputs
from transformers_qaig.data.samples import answer_mask, load_samples

TEXT_MODEL = ModelInputs(has_images=False)
PICTURE = Image.new("RGB", (28, 28))
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "look_up", "arguments": {"q": "red"}}}]}
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "look it up", "parameters": {}}}]
TEXT = "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text | trim }}{% endif %}{% endfor %}"
TOOL_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<s>{{ m.role }}: " + TEXT + "{% for t in m.tool_calls or [] %}call "
    "{{ t.function.name }} {{ t.function.arguments | tojson }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
# As reasoning models have it: the reasoning is written in the last turn only, and there always.
REASONING_TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {% if loop.last and m.role == 'assistant' %}<think>"
    "{{ m.reasoning_content or '' }}</think>{% endif %}" + TEXT + "</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: <think>{% endif %}"
)


@pytest.fixture
def processor() -> Any:
    return build("llava")[1]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": text}]}


def load(processor: Any, record: Any, **options: Any) -> dict[str, torch.Tensor]:
    (sample,) = load_samples([record], processor, num_samples=1, seed=0, inputs=TEXT_MODEL, **options)
    return sample


def decoded(processor: Any, ids: torch.Tensor) -> str:
    return processor.tokenizer.decode(ids.flatten())


def test_tool_calls_and_tools_are_written(processor: Any) -> None:
    processor.chat_template = TOOL_TEMPLATE
    messages = [user("what is it ?"), CALL, {"role": "tool", "content": "red"}, {"role": "assistant", "content": "ok"}]
    sample = load(processor, {"messages": messages, "tools": TOOLS}, with_labels=True)
    text = decoded(processor, sample["input_ids"])
    assert "look it up" in text
    assert "call look_up" in text
    answers = decoded(processor, sample["input_ids"][0][answer_mask(sample)[0]])
    assert "call look_up" in answers
    assert "ok" in answers
    assert "tool: red" not in answers


def test_a_tool_call_that_the_template_does_not_know_is_refused(processor: Any) -> None:
    for name in ({"tools": TOOLS}, {}):  # also where the tool's name stands elsewhere in the text
        record = {"messages": [user("look_up what it is"), CALL], **name}
        with pytest.raises(ValueError, match=r"sample 0 .*drops the tool call of the assistant in message 1"):
            load(processor, record)


@pytest.mark.parametrize("answer", ["2", "s", "seventeen"])
def test_an_answer_that_is_dropped_is_refused_even_if_its_letters_stand_elsewhere(processor: Any, answer: str) -> None:
    processor.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}: {% if m.role != 'assistant' %}" + TEXT + "{% endif %}</s>{% endfor %}"
    )
    with pytest.raises(
        ValueError, match=r"sample 0 is not usable: the chat template drops the text of the assistant in message 1"
    ):
        load(processor, [user("1 or 2 or seventeen ?"), {"role": "assistant", "content": answer}])


def test_an_answer_that_is_changed_for_what_it_holds_is_refused(processor: Any) -> None:
    processor.chat_template = processor.chat_template.replace("c['text']", "c['text'].split('|')[-1]")
    load(processor, [user("what ?"), {"role": "assistant", "content": "one two"}])
    with pytest.raises(ValueError, match=r"sample 0 .*drops or changes the text of the assistant in message 1"):
        load(processor, [user("what ?"), {"role": "assistant", "content": "one | two"}])


def test_reasoning_of_earlier_turns_may_go_and_every_answer_is_still_marked(
    processor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    processor.chat_template = REASONING_TEMPLATE
    turns = [("first ?", "it has fur", "a red cat"), ("second ?", "it has wheels", " two boxes \n")]
    messages = [
        message
        for question, reasoning, answer in turns
        for message in (
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, "reasoning_content": reasoning},
        )
    ]
    sample = load(processor, messages, with_labels=True)
    text = decoded(processor, sample["input_ids"])
    assert "fur" not in text
    assert "it has wheels</think>two boxes" in text
    answers = decoded(processor, sample["input_ids"][0][answer_mask(sample)[0]])
    assert "a red cat" in answers
    assert "it has wheels</think>two boxes" in answers
    assert "first" not in answers
    assert "second" not in answers
    assert "drops" not in caplog.text


def test_what_else_is_dropped_is_logged_once(processor: Any, caplog: pytest.LogCaptureFixture) -> None:
    processor.chat_template = "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}" + str(
        processor.chat_template
    )
    turn = {"role": "assistant", "content": "a cat", "thinking": "it has fur"}
    record = {"messages": [{"role": "system", "content": "be brief"}, user("what ?"), turn], "tools": TOOLS}
    with caplog.at_level(logging.WARNING, "transformers.qaig"):
        load_samples([record, record], processor, num_samples=2, seed=0)
    for what in ("a text of the system", "the tools", "the assistant's reasoning"):
        assert caplog.text.count(f"drops {what}, in calibration samples 0, 1") == 1


def test_a_list_of_parts_is_never_written_as_python_writes_it() -> None:
    tokenizer = build("llava")[1].tokenizer
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    sample = load(tokenizer, [{"role": "user", "content": "what ?"}, {"role": "assistant", "content": "a cat"}])
    assert tokenizer.decode(sample["input_ids"][0]) == "<s>user: what ?</s><s>assistant: a cat</s>"


def test_a_role_that_the_template_does_not_know(processor: Any) -> None:
    with pytest.raises(ValueError, match=r"sample 0 .*role 'narrator'.*'assistant'"):
        load(processor, [user("what ?"), {"role": "narrator", "content": "a cat"}])


def test_without_a_template_tools_are_refused(processor: Any) -> None:
    processor.chat_template = None
    with pytest.raises(ValueError, match=r"sample 0 .*no chat template to write them"):
        load(processor, [user("what ?"), CALL])
