"""Which column of a record plays which part."""

import pytest

from transformers_qaig.data.columns import choices_of, find_columns


def test_the_likeliest_name_that_has_a_value_is_taken() -> None:
    record = {"image": None, "img": "a.png", "text": "second", "question": "first", "answer": "yes"}
    assert find_columns(record, None) == {"image": "img", "prompt": "question", "response": "answer"}


def test_given_columns_are_taken_as_they_are() -> None:
    assert find_columns({"q": "how many ?", "question": "not this"}, {"prompt": "q"}) == {"prompt": "q"}


@pytest.mark.parametrize("columns", [{"promt": "q"}, {"prompt": "qq"}])
def test_a_wrong_part_or_column_is_named_with_what_there_is(columns: dict[str, str]) -> None:
    expected = r"unknown part 'promt'.*Did you mean 'prompt'" if "promt" in columns else r"only \['1', 'q'\]"
    with pytest.raises(ValueError, match=expected):
        find_columns({"q": "how many ?", 1: 2}, columns)


def test_text_beside_a_picture_that_would_not_be_read_is_refused_but_an_identifier_is_not() -> None:
    with pytest.raises(ValueError, match=r"has image and video, and text in \['note', 'story'\] that would not be"):
        find_columns({"image": "a.png", "video": "b.mp4", "story": "two frogs", "note": "of a pond"}, None)
    assert find_columns({"image": "my photo.png", "id": "a-17", "hash": " 17 "}, None) == {"image": "image"}


@pytest.mark.parametrize("record", [{"a": 1}, {"system": "Be kind."}, {"answer": None}])
def test_a_record_without_anything_to_read_lists_its_keys(record: dict) -> None:
    with pytest.raises(ValueError, match=rf"none of the sample's keys \['{next(iter(record))}'\] is known: say which"):
        find_columns(record, None)


def test_choices_are_a_column_or_columns_by_letter() -> None:
    assert choices_of({"options": ["x"]}, {"choices": "options"}) == ["x"]
    assert choices_of({"A": "x", "B": "y", "C": None, "D": "z"}, {}) == {"A": "x", "B": "y", "D": "z"}
    assert choices_of({"A": "x", "C": "y"}, {}) is None
