"""Writes a quantized model's card beside its weights, and makes a push to the Hub upload it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import PushToHubMixin

from ...report.base_model import BaseModel
from ...report.card_name import MARK, renamed
from ...report.model_card import model_card
from ...report.summary import QuantizationReport
from ...utils.files import write


def save_model_card(model: Any, directory: str | os.PathLike[str], base: BaseModel | None = None) -> Path:
    """Writes the card of a quantized `model`, saved in `directory`, to README.md there; returns that path."""
    directory = Path(directory)
    card = model_card(
        model.config.quantization_config,
        getattr(model, "qaig_report", None),
        base,
        size_in_bytes=_weight_bytes(directory),
    )
    write(directory / "README.md", card)
    return directory / "README.md"


def attach_model_card(
    model: Any, base: BaseModel | None = None, processor: Writable | None = None, earlier: Path | None = None
) -> None:
    """Makes `model.push_to_hub` upload this package's card, and the model's processor.

    Both ways to the Hub, `push_to_hub` and `save_pretrained(push_to_hub=True)`, write an unfilled template to README.md
    beside the weights, and then call `model._upload_modified_files`. There is no public hook between the two. So this
    one object gets a method that writes the card and goes on. A card that somebody else wrote is kept.

    Args:
        model: quantized; its class is left alone.
        base: the unquantized model.
        processor: writes its files into the folder that is uploaded.
        earlier: of a model that was loaded quantized: the card it came with, if it is there.
    """
    model._upload_modified_files = _UploadWithCard(
        type(model).__name__,
        model.config.quantization_config,
        getattr(model, "qaig_report", None),
        base,
        processor,
        earlier,
    )


def detach_model_card(model: Any) -> None:
    """Undoes [`attach_model_card`] except for the processor: the card no longer describes the model."""
    upload = vars(model).get("_upload_modified_files")
    if isinstance(upload, _UploadWithCard):
        model._upload_modified_files = replace(upload, config=None, report=None, base=None)


class Writable(Protocol):
    """Something that writes files of its own into a folder."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes its files into `folder`."""
        ...


@dataclass
class _UploadWithCard:
    """Writes the card before an upload.

    It holds no model: the model that it is attached to can be copied, pickled and freed as before.
    """

    class_name: str
    config: Any  # None: no card is due
    report: QuantizationReport | None
    base: BaseModel | None
    processor: Writable | None = None
    earlier: Path | None = None

    def __call__(self, working_dir: str | os.PathLike[str], repo_id: str, *args: Any, **kwargs: Any) -> Any:
        folder = Path(working_dir)
        readme = folder / "README.md"
        is_whole_model = (folder / "config.json").is_file()  # else only an adapter is pushed
        if is_whole_model and self.processor is not None:
            self.processor.write(folder)
        if is_whole_model and self.config is not None and is_replaceable(readme, ours_too=self.report is not None):
            known = ModelCard.load(readme).data.tags if readme.is_file() else None
            write(readme, self._earlier_card(repo_id, known or []) or self._new_card(folder, repo_id, known or []))
        elif is_whole_model and self.config is not None and is_replaceable(readme, ours_too=True):
            write(readme, renamed(readme.read_text(encoding="utf-8"), repo_id, folder.name))
        if kwargs.get("commit_message") is None:
            kwargs["commit_message"] = f"Upload {self.class_name}"
        return PushToHubMixin()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def _earlier_card(self, repo_id: str, tags: Sequence[str]) -> str | None:
        """Returns the card that the model came with, which says more than a new one could, with more tags.

        It has the name of the upload.
        """
        if self.earlier is None or not self.earlier.is_file():
            return None
        try:
            card: Any = ModelCard(renamed(self.earlier.read_text(encoding="utf-8"), repo_id, repo_id))
        except Exception:  # damaged metadata, no text
            return None
        card.data.tags = list(dict.fromkeys([*(card.data.tags or ()), *tags]))
        return str(card)

    def _new_card(self, folder: Path, repo_id: str, tags: Sequence[str]) -> str:
        size = _weight_bytes(folder)
        return model_card(self.config, self.report, self.base, repo_id=repo_id, size_in_bytes=size, tags=tags)


def is_replaceable(readme: Path, *, ours_too: bool) -> bool:
    """Whether a README.md is missing, the Hub's unfilled template, or (if `ours_too`) ours."""
    if not readme.is_file():
        return not readme.exists()
    try:
        card = ModelCard.load(readme, ignore_metadata_errors=True)
    except (OSError, ValueError):  # it is no text, and so not ours
        return False
    if MARK in card.text:
        return ours_too
    blank = "\0"
    start, end = ModelCard.from_template(ModelCardData(), model_description=blank).text.split(blank)
    return card.text.strip().startswith(start.strip()) and card.text.strip().endswith(end.strip())


def _weight_bytes(folder: Path) -> int | None:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) or None
