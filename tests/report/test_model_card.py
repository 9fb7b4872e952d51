"""What the model card says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.docs.pages import ROOT
from tests.report.cards import BASE, config_of_a_run, report_of_a_run
from transformers_qaig import QAIGConfig
from transformers_qaig.config.budget import DEFAULT_BUDGET
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.loading.source import Source
from transformers_qaig.report import engines
from transformers_qaig.report.base_model import BaseModel
from transformers_qaig.report.card_name import renamed
from transformers_qaig.report.card_results import add_results
from transformers_qaig.report.engines import VLLM_TRIED
from transformers_qaig.report.model_card import model_card
from transformers_qaig.report.page.comparison import FIGURES
from transformers_qaig.report.summary import QuantizationReport


@pytest.fixture
def config() -> QAIGConfig:
    return config_of_a_run()


@pytest.fixture
def report() -> QuantizationReport:
    return report_of_a_run()


def test_the_card_says_what_the_readme_says_about_installing(config: QAIGConfig) -> None:
    command = "pip install torch && pip install ."
    assert command in (ROOT / "README.md").read_text()
    card = model_card(config)
    assert command in card
    assert "pypi.org" not in card


def test_card_says_what_was_done(config: QAIGConfig, report: QuantizationReport) -> None:
    card = ModelCard(model_card(config, report, BASE, repo_id="me/vlm-w3", size_in_bytes=6_168_872))
    assert card.data.base_model == "org/vlm"
    assert card.data.to_dict()["base_model_relation"] == "quantized"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert card.data.tags == ["qaig", "3-bit"]
    assert card.data.license == "apache-2.0"
    assert card.data.language == ["en", "de"]
    assert card.data.datasets is None
    for said in (
        "`paper`",
        "3 bits (2 layers) and 8 bits (1 layers)",
        "one per 64 input channels, asymmetric",
        "| Stored bits | 3.30 per packed weight of the blocks, with scales and zero points |",
        "128 conversations of the bundled set, 12,345 tokens, 1 min 1 s",
        "| Packed | 99.0% of the blocks' 1,000 weights |",
        "6,168,872 bytes",
        "| Error by block | █·  1.3e-03 to 1.3e-03, most in layers.0 |",
        "| `vllm serve me/vlm-w3` |",
        "the weights of its language model, vision tower and head are packed",
        "| part | bits | before | after | times smaller |\n| --- | --- | --- | --- | --- |",
        "| `lm_head` | 8 | 1 MB | 250 kB | 4.00 |",
        "| language model's blocks | 3, 8 | 2 kB | 428.4 bytes | 4.67 |",
        "| whole model |  | 1.002 MB | 250.4 kB | 4.00 |",
    ):
        assert said in card.text, said
    assert card.text.index("import transformers_qaig") < card.text.index('model="me/vlm-w3"')


def test_card_tells_the_group_sizes_that_were_stored(config: QAIGConfig) -> None:
    plan = {f"layers.{i}": {"bits": 3, "group_size": size, "sym": False} for i, size in enumerate((96, 96, -1))}
    stored = QAIGConfig(**{**config.to_dict(), "plan": plan})
    scales = "one per 96 input channels, asymmetric (2 layers); one per output channel, asymmetric (1 layers)"
    assert f"| Scales | {scales} |" in model_card(stored)


def test_card_says_once_by_what_widths_were_chosen(config: QAIGConfig, report: QuantizationReport) -> None:
    assert "Widths chosen" not in model_card(config, report)
    settings = {**config.to_dict(), "budget": DEFAULT_BUDGET.to_dict()}
    del settings["bits"]
    stored, report.budget = QAIGConfig(**settings), DEFAULT_BUDGET
    line = "| Widths chosen | by default, by what they cost the answers; bits=4 turns this off |"
    report.plan = {path: WeightScheme(bits, 64) for path, bits in (("q", 3), ("k", 8))}
    assert model_card(stored, report).count(line) == 1
    assert "Widths chosen" not in model_card(stored), "of a loaded model nobody knows whether overrides set them"


@pytest.mark.parametrize(
    ("dataset", "named", "listed"),
    [("org/chats:train", " of `org/chats`", ["org/chats"]), ("/home/me/chats.jsonl", "", None), ([[]], "", None)],
)
def test_card_names_data_of_the_hub_only(
    config: QAIGConfig, report: QuantizationReport, dataset: Any, named: str, listed: list[str] | None
) -> None:
    config.dataset = dataset
    card = ModelCard(model_card(config, report))
    assert f"128 conversations{named}, 12,345 tokens" in card.text
    assert card.data.datasets == listed
    assert "/home/me" not in str(card)


def test_card_says_how_far_serving_by_vllm_was_tried(config: QAIGConfig) -> None:
    assert f"{VLLM_TRIED} | `vllm serve FOLDER` |" in model_card(config)


def test_one_word_stands_for_a_model_without_an_address(config: QAIGConfig) -> None:
    card = model_card(config)
    for said in ('model="FOLDER"', 'from_pretrained("FOLDER")', "`vllm serve FOLDER`", "export FOLDER OUT"):
        assert said in card
    assert "path/or/id" not in card


@pytest.mark.parametrize(
    ("addresses", "said"),
    [
        (
            ["Paper, https://arxiv.org/abs/1", "Repository, https://host/qaig"],
            "a clone of its repository, https://host/qaig:",
        ),
        (["Paper, https://arxiv.org/abs/1"], "a clone of its repository (paper: https://arxiv.org/abs/1):"),
        (None, "a clone of its repository:"),
    ],
)
def test_the_card_names_the_addresses_of_the_package(
    addresses: list[str] | None, said: str, config: QAIGConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = SimpleNamespace(get_all=lambda name: addresses)
    monkeypatch.setattr(engines, "metadata", lambda name: message)
    assert said in model_card(config)


def test_a_copied_card_has_the_name_of_the_copy(config: QAIGConfig, report: QuantizationReport, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(model_card(config, report, BASE, repo_id="me/old-w3"))
    figures = {"data": "mine.jsonl", "questions": 9, "conversations": 9, "answer_tokens": 9}
    add_results(card, figures | {"kl": {"mean": 0.5, "standard_error": None}}, FIGURES)
    local, pushed = (renamed(card.read_text(), repo_id, "new-folder") for repo_id in (None, "you/other"))
    for text, name, address in ((local, "new-folder", "FOLDER"), (pushed, "other", "you/other")):
        assert "old-w3" not in text
        assert tmp_path.name not in text
        assert f'model="{address}"' in text
        assert f"`vllm serve {address}`" in text
        assert ModelCard(text).data.model_name == name
    assert "\n# vlm\n" in local  # of the unquantized model
    assert "\n# other\n" in pushed
    assert renamed("# Mine, of old-w3", "you/other", "x") == "# Mine, of old-w3"


def test_card_from_config_json_alone(config: QAIGConfig, tmp_path: Path) -> None:
    card = ModelCard(model_card(config.to_dict(), base=BaseModel.of(Source(str(tmp_path)))))
    assert card.data.base_model is None
    assert str(tmp_path) not in card.text
    assert "stored bits" not in card.text.lower()
