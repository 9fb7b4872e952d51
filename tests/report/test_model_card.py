"""The model card, and how it gets onto the Hub instead of the unfilled template."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from torch import nn
from transformers.utils import PushToHubMixin

from tests.docs.pages import ROOT
from transformers_qaig import QAIGConfig
from transformers_qaig.plan.coverage import BLOCKS, Coverage, PartSize
from transformers_qaig.report.model_card import MARK, attach_model_card, model_card, save_model_card
from transformers_qaig.report.summary import QuantizationReport, TargetSummary
from transformers_qaig.scheme import WeightScheme


class Model(nn.Module, PushToHubMixin):
    """As much of a quantized model as a card is made from."""

    def __init__(self, config: QAIGConfig, report: QuantizationReport | None) -> None:
        super().__init__()
        self.config = type("Config", (), {"quantization_config": config})()
        if report is not None:
            self.qaig_report = report


@pytest.fixture
def config() -> QAIGConfig:
    entry = {"group_size": 64, "sym": False}
    plan = {f"layers.{i}.q_proj": {"bits": bits, **entry} for i, bits in enumerate((3, 3, 8))}
    return QAIGConfig(bits=3, group_size=64, recipe="paper", vision_bits=8, lm_head_bits=8, plan=plan)


@pytest.fixture
def report() -> QuantizationReport:
    plan = {path: WeightScheme(bits, 64) for path, bits in (("q", 3), ("k", 8), ("lm_head", 8))}
    return QuantizationReport(
        recipe="paper",
        coverage=Coverage(
            packed=990,
            total=1000,
            stored_bits=990 * 3.3,
            parts={BLOCKS: PartSize(16_000, 160), "lm_head": PartSize(8_000_000, 2_000_000)},
            outside_plan={"lm_head": plan["lm_head"]},
        ),
        plan=plan,
        num_samples=128,
        num_tokens=12_345,
        targets=[TargetSummary("layers.0", error=1.28e-3), TargetSummary("layers.1", error=float("nan"))],
        seconds=61.0,
    )


def test_the_card_says_what_the_readme_says_about_installing(config: QAIGConfig) -> None:
    command = "pip install torch && pip install ."
    assert command in (ROOT / "README.md").read_text()
    card = model_card(config)
    assert command in card
    assert "pypi.org" not in card


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


def test_card_says_what_was_done(config: QAIGConfig, report: QuantizationReport) -> None:
    card = ModelCard(model_card(config, report, "org/vlm", repo_id="me/vlm-w3", size_in_bytes=6_168_872))
    assert card.data.base_model == "org/vlm"
    assert card.data.to_dict()["base_model_relation"] == "quantized"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert card.data.tags == ["qaig"]
    for said in (
        "`paper`",
        "3 bits (2 layers) and 8 bits (1 layers)",
        "one per 64 input channels, asymmetric",
        "| Stored bits | 3.30 per packed weight of the blocks, with scales and zero points |",
        "128 conversations, 12,345 tokens, 1 min 1 s",
        "| Packed | 99.0% of the blocks' 1,000 weights |",
        "6,168,872 bytes",
        "| Error by block | █·  1.3e-03 to 1.3e-03, most in layers.0 |",
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


def test_card_from_config_json_alone(config: QAIGConfig, tmp_path: Path) -> None:
    card = ModelCard(model_card(config.to_dict(), base_model_id=str(tmp_path)))
    assert card.data.base_model is None
    assert str(tmp_path) not in card.text
    assert "stored bits" not in card.text.lower()


def test_saved_card_counts_the_weight_files(config: QAIGConfig, report: QuantizationReport, folder: Path) -> None:
    written = save_model_card(Model(config, report), folder)
    assert written == folder / "README.md"
    assert "1,234 bytes" in written.read_text()


def test_upload_replaces_the_unfilled_template(
    config: QAIGConfig, report: QuantizationReport, folder: Path, uploads: list
) -> None:
    model = Model(config, report)
    attach_model_card(model, "org/vlm")
    assert model._upload_modified_files(folder, "me/w3", {}, token="t") == "done"
    text, sent = uploads[0]
    assert MARK in text
    assert "1,234 bytes" in text
    assert ModelCard(text).data.tags == ["qaig", "mine"]
    assert sent == {"repo_id": "me/w3", "token": "t", "commit_message": "Upload Model"}


def test_upload_replaces_our_own_older_card(
    config: QAIGConfig, report: QuantizationReport, folder: Path, uploads: list
) -> None:
    (folder / "README.md").write_text(model_card(config, base_model_id="org/older"))
    model = Model(config, report)
    attach_model_card(model, "org/vlm")
    model._upload_modified_files(folder, "me/w3", commit_message="again")
    text, sent = uploads[0]
    assert "org/older" not in text
    assert sent["commit_message"] == "again"


def test_upload_of_a_reloaded_model_keeps_the_fuller_card(
    config: QAIGConfig, report: QuantizationReport, folder: Path, uploads: list
) -> None:
    """A model loaded already quantized has no report: the card of the run that made it says more."""
    before = model_card(config, report, "org/vlm")
    (folder / "README.md").write_text(before)
    model = Model(config, None)
    attach_model_card(model)
    model._upload_modified_files(folder, "me/w3")
    assert uploads[0][0] == before


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
