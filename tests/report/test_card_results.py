"""Figures of an evaluation in the metadata of a model card."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from transformers_qaig import QAIGConfig
from transformers_qaig.report.card_name import MARK
from transformers_qaig.report.card_results import add_results
from transformers_qaig.report.hub_names import dataset_id
from transformers_qaig.report.model_card import model_card
from transformers_qaig.report.page.comparison import FIGURES


def result_of(data: str, kl: float) -> dict:
    figures = {name: {"mean": value, "standard_error": 0.1} for name, value in (("kl", kl), ("exact_match", 0.9))}
    return {"data": data, "questions": 120, "conversations": 40, "answer_tokens": 500, **figures}


def test_figures_join_those_of_other_data_and_replace_their_own(tmp_path: Path) -> None:
    card = tmp_path / "w3" / "README.md"
    card.parent.mkdir()
    card.write_text(model_card(QAIGConfig()))
    for data, kl in (("org/chats:test", 0.5), ("/home/me/mine.jsonl", 0.25), ("org/chats", 0.125)):
        add_results(card, result_of(data, kl), FIGURES)
    written = ModelCard.load(card)
    assert written.data.model_name == "w3"
    results = written.data.eval_results
    kl = {entry.dataset_name: entry.metric_value for entry in results if entry.metric_type == "kl_divergence"}
    assert kl == {"org/chats": 0.125, "mine.jsonl": 0.25}
    assert {entry.dataset_type for entry in results} == {"org/chats", "custom"}
    assert len(results) == 4
    assert MARK in written.text
    assert "/home/me" not in card.read_text()


def test_the_card_shows_readers_figures_with_their_errors_and_the_number_of_answers(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(model_card(QAIGConfig()))
    few = result_of("few.jsonl", 0.5) | {"kl": {"mean": 0.5, "standard_error": None}}
    for result in (result_of("mine.jsonl", 0.5), few, result_of("mine.jsonl", 0.25)):
        add_results(card, result, FIGURES)
    text = card.read_text()
    measured = "120 answers of 500 tokens, in 40 conversations"
    assert text.count("## Evaluation") == 1
    assert f"| `mine.jsonl` | {FIGURES['kl']} | 0.25 ± 0.1 | {measured} |" in text
    assert f"| `few.jsonl` | {FIGURES['kl']} | 0.5 | {measured} |" in text
    assert text.index("## What was done") < text.index("## Evaluation")
    errors = {entry.metric_args.get("standard_error") for entry in ModelCard.load(card).data.eval_results}
    assert errors == {0.1, None}


def test_a_figure_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("")
    add_results(card, result_of("mine.jsonl", float("nan")), FIGURES)
    assert [entry.metric_type for entry in ModelCard.load(card).data.eval_results] == ["exact_match"]


@pytest.mark.parametrize("metadata", ["license: [", "- a list", "model-index: mine", "model-index:\n- results: []"])
def test_a_card_with_damaged_metadata_is_named_and_kept(metadata: str, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(f"---\n{metadata}\n---\n# Mine")
    with pytest.raises(ValueError, match=f"the metadata of the model card {card} cannot be read"):
        add_results(card, result_of("mine.jsonl", 0.5), FIGURES)
    assert card.read_text().endswith("# Mine")


def test_paths_are_no_names_on_the_hub() -> None:
    paths = ("chats/train.parquet", "chats/train.csv", "chats/train.arrow", "chats/train.json", "../chats", "./chats")
    assert [dataset_id(path) for path in paths] == [None] * len(paths)
    assert dataset_id("org/chats:test") == "org/chats"
