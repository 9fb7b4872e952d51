"""The one processor that writes the questions for all models that are compared."""

import argparse
from types import SimpleNamespace
from typing import Any

import pytest

from transformers_qaig.cli import evaluated_models
from transformers_qaig.cli.evaluated_models import shared_processor


def processor(words: int = 3, template: str = "a", size: int | None = 28) -> SimpleNamespace:
    """A processor of images; of text alone without a `size`."""
    image = None if size is None else SimpleNamespace(to_dict=lambda: {"size": size})
    tokenizer = SimpleNamespace(get_vocab=lambda: {str(word): word for word in range(words)})
    return SimpleNamespace(tokenizer=tokenizer, image_processor=image, chat_template=template)


def options(**others: Any) -> argparse.Namespace:
    given = {"reference": "full", "baseline": None, "revision": "v2", "token": "secret", "trust_remote_code": False}
    return argparse.Namespace(model="packed", **{**given, **others})


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Model → its processor, or why it has none. Asking for one notes the revision under `asked`."""
    known: dict[str, Any] = {"asked": {}}

    def from_pretrained(name: str, **access: Any) -> Any:
        known["asked"][name] = access["revision"]
        if isinstance(known[name], Exception):
            raise known[name]
        return known[name]

    monkeypatch.setattr(evaluated_models, "AutoProcessor", SimpleNamespace(from_pretrained=from_pretrained))
    return known


def test_it_is_the_models_own_and_the_revision_is_the_models_alone(known: dict[str, Any]) -> None:
    known |= {"packed": processor(), "full": processor()}
    assert shared_processor(options()) == (known["packed"], "that of packed")
    assert known["asked"] == {"packed": "v2", "full": "main"}


@pytest.mark.parametrize("error", [OSError("no file"), KeyError("qwen9"), TypeError("None")])
def test_a_model_without_one_borrows_its_references(known: dict[str, Any], error: Exception) -> None:
    known |= {"packed": error, "full": processor()}
    assert shared_processor(options()) == (known["full"], "that of full")


def test_where_no_model_has_one_the_first_reason_is_told(known: dict[str, Any]) -> None:
    known |= {"packed": OSError("no preprocessor_config.json"), "full": ValueError("other")}
    with pytest.raises(OSError, match=r"packed has no processor, nor has its reference: no preprocessor") as caught:
        shared_processor(options())
    assert caught.value.__cause__ is known["packed"]


def test_other_tokens_are_refused_and_name_the_two_models(known: dict[str, Any]) -> None:
    known |= {"packed": processor(), "full": processor(), "peer": processor(words=4)}
    with pytest.raises(ValueError, match="the tokenizers of packed and peer differ"):
        shared_processor(options(baseline="peer"))


@pytest.mark.parametrize("other", [processor(template="b"), processor(size=56), processor(size=None)])
def test_other_settings_are_told_and_not_used(
    known: dict[str, Any], other: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    known |= {"packed": processor(), "full": processor(), "peer": other}
    found, words = shared_processor(options(baseline="peer"))
    assert found is known["packed"]
    assert words == "that of packed; that of peer differs, and is not used"
    assert "every model reads what the first makes" in caplog.text


def test_a_tokenizer_is_a_processor_of_its_own(known: dict[str, Any]) -> None:
    known |= {"packed": processor(size=None).tokenizer, "full": processor(words=4, size=None).tokenizer}
    with pytest.raises(ValueError, match="tokenizers"):
        shared_processor(options())
