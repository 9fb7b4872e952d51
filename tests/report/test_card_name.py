"""A copied card gets the name of the copy; somebody's own card stays as it is."""

from transformers_qaig.report.card_name import MARK, NO_TITLE, renamed, title_of

CARD = f"""---
base_model: org/full
model-index:
- name: old
---
{MARK}

# old

pipeline("image-text-to-text", model="me/old")
`vllm serve me/old`
"""


def test_title_commands_and_figures_get_the_new_name() -> None:
    found = renamed(CARD, "you/new", "")
    assert "# new\n" in found
    assert 'pipeline("image-text-to-text", model="you/new")' in found
    assert "`vllm serve you/new`" in found
    assert '- name: "new"' in found
    assert "me/old" not in found


def test_a_folder_is_named_beside_the_figures_alone() -> None:
    found = renamed(CARD, None, "w3")
    assert "# full\n" in found
    assert 'model="FOLDER"' in found
    assert '- name: "w3"' in found


def test_a_card_without_the_mark_stays() -> None:
    own = CARD.replace(MARK, "")
    assert renamed(own, "you/new", "") == own


def test_a_title_is_the_last_part_of_what_is_known() -> None:
    assert title_of("me/model", "org/full") == "model"
    assert title_of(None, "org/full") == "full"
    assert title_of(None, None) == NO_TITLE
