"""Processors whose chat template takes less than most, or that have none."""

from typing import Any

import pytest
from PIL import Image

from tests.data.loading import conversation, one, same
from tests.families import build


def test_templates_that_take_only_parts_or_only_strings(picture: Image.Image) -> None:
    processor = build("llava")[1]
    turn = "{{ m['role'] }}: {% for c in m['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
    parts = turn + "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %}"
    strings = "{% if m['role'] == 'assistant' %}{{ 'assistant: ' + m['content'] }}{% else %}" + parts + "{% endif %}"
    samples = []
    for body in (parts, strings):
        processor.chat_template = "{% for m in messages %}" + body + "{% endfor %}"
        samples.append(one([conversation(picture, answer="seventeen")], processor))
        assert "seventeen" in processor.tokenizer.decode(samples[-1]["input_ids"][0])
    assert same(*samples)


def test_without_a_chat_template(picture: Image.Image) -> None:
    processor = build("paligemma")[1]
    processor.chat_template = None
    sample = one([conversation(picture, answer="seventeen")], processor)
    assert "seventeen" in processor.tokenizer.decode(sample["input_ids"][0])
    assert "pixel_values" in sample


def test_without_a_chat_template_and_an_image_token(picture: Image.Image) -> None:
    class Bare:
        def __call__(self, **kwargs: Any) -> Any:
            raise AssertionError("must not be called")

    with pytest.raises(ValueError, match="neither a chat template nor an image token"):
        one([conversation(picture)], Bare())
