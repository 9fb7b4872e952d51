"""How the model card gets beside the weights, and onto the Hub instead of the unfilled template."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from torch import nn
from transformers.utils import PushToHubMixin

from tests.report.cards import BASE, config_of_a_run, report_of_a_run
from transformers_qaig import QAIGConfig
from transformers_qaig.quantizer.saving.card_upload import attach_model_card, save_model_card
from transformers_qaig.report.base_model import BaseModel
from transformers_qaig.report.card_name import MARK, renamed
from transformers_qaig.report.model_card import model_card
from transformers_qaig.report.summary import QuantizationReport


class Model(nn.Module, PushToHubMixin):
    """As much of a quantized model as a card is made from."""

    def __init__(self, config: QAIGConfig, report: QuantizationReport | None) -> None:
        super().__init__()
        self.config = type("Config", (), {"quantization_config": config})()
        if report is not None:
            self.qaig_report = report


@pytest.fixture
def config() -> QAIGConfig:
    return config_of_a_run()


@pytest.fixture
def report() -> QuantizationReport:
    return report_of_a_run()


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What would have been sent: (README.md, arguments)."""
    sent: list[tuple[str, dict[str, Any]]] = []

    def upload(self: Any, working_dir: str, repo_id: str, *args: Any, **kwargs: Any) -> str:
        sent.append(((Path(working_dir) / "README.md").read_text(), {"repo_id": repo_id, **kwargs}))
        return "done"

    monkeypatch.setattr(PushToHubMixin, "_upload_modified_files", upload)
    return sent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `push_to_hub` has in its folder just before it uploads."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"0" * 1234)
    description = "This is some one-line description."
    template = ModelCard.from_template(ModelCardData(tags=["mine"]), model_description=description)
    template.save(tmp_path / "README.md")
    return tmp_path


def test_saved_card_counts_the_weight_files(config: QAIGConfig, report: QuantizationReport, folder: Path) -> None:
    written = save_model_card(Model(config, report), folder)
    assert written == folder / "README.md"
    assert "1,234 bytes" in written.read_text()


def test_upload_replaces_the_unfilled_template(
    config: QAIGConfig, report: QuantizationReport, folder: Path, uploads: list
) -> None:
    model = Model(config, report)
    attach_model_card(model, BASE)
    assert model._upload_modified_files(folder, "me/w3", {}, token="t") == "done"
    text, sent = uploads[0]
    assert MARK in text
    assert "1,234 bytes" in text
    assert ModelCard(text).data.tags == ["qaig", "3-bit", "mine"]
    assert sent == {"repo_id": "me/w3", "token": "t", "commit_message": "Upload Model"}


def test_upload_replaces_our_own_older_card(
    config: QAIGConfig, report: QuantizationReport, folder: Path, uploads: list
) -> None:
    (folder / "README.md").write_text(model_card(config, base=BaseModel("org/older")))
    model = Model(config, report)
    attach_model_card(model, BASE)
    model._upload_modified_files(folder, "me/w3", commit_message="again")
    text, sent = uploads[0]
    assert "org/older" not in text
    assert sent["commit_message"] == "again"


def test_upload_of_a_reloaded_model_keeps_the_fuller_card(
    config: QAIGConfig, report: QuantizationReport, folder: Path, uploads: list
) -> None:
    """A model loaded already quantized has no report: the card of the run that made it says more."""
    before = model_card(config, report, BASE)
    (folder / "README.md").write_text(before)
    model = Model(config, None)
    attach_model_card(model)
    model._upload_modified_files(folder, "me/w3")
    assert uploads[0][0] == renamed(before, "me/w3", "")
    assert "`vllm serve me/w3`" in uploads[0][0]


def test_the_first_upload_of_a_reloaded_model_has_the_card_it_came_with(
    config: QAIGConfig, report: QuantizationReport, folder: Path, uploads: list, tmp_path: Path
) -> None:
    earlier, model = tmp_path / "earlier.md", Model(config, None)
    earlier.write_text(model_card(config, report, BASE))
    attach_model_card(model, earlier=earlier)
    model._upload_modified_files(folder, "me/w3")
    card = ModelCard(uploads[0][0])
    assert card.text == ModelCard(renamed(earlier.read_text(), "me/w3", "")).text
    assert card.data.base_model == BASE.repo_id
    assert card.data.tags == ["qaig", "3-bit", "mine"]


@pytest.mark.parametrize("change", [("## Uses", "## Uses\n\nMine."), ("Model Card for Model ID", "My model")])
def test_upload_keeps_a_card_that_somebody_wrote(
    config: QAIGConfig, report: QuantizationReport, folder: Path, uploads: list, change: tuple[str, str]
) -> None:
    readme = folder / "README.md"
    readme.write_text(readme.read_text().replace(*change))
    before = readme.read_text()
    model = Model(config, report)
    attach_model_card(model)
    model._upload_modified_files(folder, "me/w3")
    assert uploads[0][0] == before


def test_upload_of_an_adapter_is_left_alone(
    config: QAIGConfig, report: QuantizationReport, folder: Path, uploads: list
) -> None:
    (folder / "config.json").unlink()
    before = (folder / "README.md").read_text()
    model = Model(config, report)
    attach_model_card(model)
    model._upload_modified_files(folder, "me/adapter")
    assert uploads[0][0] == before


def test_model_stays_copyable(config: QAIGConfig, report: QuantizationReport, folder: Path, uploads: list) -> None:
    model = Model(config, report)
    attach_model_card(model)
    clone = copy.deepcopy(model)
    del model
    clone._upload_modified_files(folder, "me/w3")
    assert MARK in uploads[0][0]
    assert pickle.loads(pickle.dumps(clone._upload_modified_files)).config.bits == 3
