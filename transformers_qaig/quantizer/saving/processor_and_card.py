"""Saves a quantized model's processor and model card beside its weights."""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ...distributed import ALONE, Ranks
from ...distributed.one_writer import OneWriter
from ...loading.source import Source
from ...report.base_model import BaseModel
from ...report.card_name import renamed
from ...report.record import record_of
from ...report.record_file import BESIDE_MODEL, save_record
from ...report.summary import QuantizationReport
from ...utils.files import open_to_umask, write
from ...utils.logging import get_logger
from .card_upload import attach_model_card, detach_model_card, is_replaceable, save_model_card

PROCESSOR_CONFIGS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")

logger = get_logger(__name__)


def holds_processor(folder: Path) -> bool:
    """Tells whether a processor or a tokenizer is saved in `folder`."""
    return any((folder / name).is_file() for name in PROCESSOR_CONFIGS)


@dataclass
class ProcessorToSave:
    """The processor that is saved with a model's weights.

    Attributes:
        given: the object that calibration used; None: its files are copied from `source`.
        source: where its files lie.
        has_warned: whether a message said that there are none.
    """

    given: Any
    source: Source
    has_warned: bool = False

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes its files into `folder`, unless a processor is there. Warns once if there is none to write."""
        folder = Path(folder)
        if holds_processor(folder):
            return
        try:
            if hasattr(self.given, "save_pretrained"):
                self.given.save_pretrained(folder)
                return
            files = self.source.processor_files()
            for name, file in files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(file, folder / name)
            reason = "" if files else "it has none"
        except Exception as error:  # the weights are saved, and that counts
            reason = str(error)
        if reason and not self.has_warned:
            self.has_warned = True
            logger.warning(
                "No processor is saved with the model, none was found in %s (%s). pipeline() needs one: "
                "save yours with `processor.save_pretrained(%r)`.",
                self.source.described(),
                reason,
                str(folder),
            )


@dataclass
class _Beside:
    """Writes the processor and the card of one model.

    Attributes:
        processor: of the model.
        base: the unquantized model; None for a model that was loaded packed.
        is_packed: whether a card is due.
        writer: of the process that writes, if several hold the model.
    """

    processor: ProcessorToSave
    base: BaseModel | None
    is_packed: bool = True
    writer: OneWriter = field(default_factory=OneWriter)

    def write(self, model: PreTrainedModel, folder: Path) -> None:
        """Writes into `folder`. A card that somebody wrote stays; a card of an earlier save is replaced."""
        self.processor.write(folder)
        self._write_report(model, folder)
        readme = folder / "README.md"
        if not is_replaceable(readme, ours_too=True):
            return
        if not self.is_packed:
            readme.unlink(missing_ok=True)
            return
        card = _card_of(self.processor)
        if self.base is None and card.is_file():  # loaded packed: the card of the run that made it says more
            if not readme.exists() or not card.samefile(readme):
                _copy_card(card, readme)
        else:
            save_model_card(model, folder, self.base)

    def _write_report(self, model: PreTrainedModel, folder: Path) -> None:
        """Writes the facts of the run, without its data; of a model that was loaded packed, those it came with."""
        file, report = folder / BESIDE_MODEL, getattr(model, "qaig_report", None)
        source = self.processor.source
        given = Path(source.name, source.subfolder, BESIDE_MODEL)
        if not self.is_packed:
            file.unlink(missing_ok=True)
        elif isinstance(report, QuantizationReport):
            save_record(record_of(report, model.config.quantization_config), file)
        elif not given.is_file():
            file.unlink(missing_ok=True)  # of another model that was saved here
        elif not file.exists() or not given.samefile(file):
            shutil.copyfile(given, file)


def _card_of(processor: ProcessorToSave) -> Path:
    """Returns where the card of the weights lies, if it does."""
    return Path(processor.source.name, processor.source.subfolder, "README.md")


def _copy_card(card: Path, readme: Path) -> None:
    """Copies a card. Where this package wrote it, it gets the name of the copy."""
    try:
        text = renamed(card.read_text(encoding="utf-8"), None, readme.absolute().parent.name)
    except UnicodeDecodeError:  # no text, hence not ours
        shutil.copyfile(card, readme)
    else:
        write(readme, text)


def attach_saving(
    model: PreTrainedModel, processor: ProcessorToSave, base: BaseModel | None = None, ranks: Ranks = ALONE
) -> None:
    """Makes `save_pretrained` and `push_to_hub` of `model` write its processor and its card beside the weights.

    Of the `ranks` that quantized it together, the main one writes.
    """
    attach_model_card(model, base, processor, _card_of(processor) if base is None else None)
    model._qaig_beside = _Beside(processor, base, writer=OneWriter.of(ranks))  # type: ignore[assignment]


def detach_saving(model: PreTrainedModel) -> None:
    """Undoes [`attach_saving`] except for the processor, which the dense model still has."""
    detach_model_card(model)
    beside = vars(model).get("_qaig_beside")
    if isinstance(beside, _Beside):
        model._qaig_beside = replace(beside, is_packed=False)  # type: ignore[assignment]


def _remove_older_whole_file(folder: Path) -> None:
    """Removes model.safetensors beside the index of newer shards: it would be loaded in their place."""
    whole, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if whole.is_file() and index.is_file() and index.stat().st_mtime_ns > whole.stat().st_mtime_ns:
        whole.unlink()
        logger.warning("%s of an earlier save is removed: the shards beside it are newer.", whole)


def _weight_files(folder: str | os.PathLike[str]) -> set[tuple[Path, int, int]]:
    """Returns the weight files of a folder, each with what changes when it is written."""
    files = [(file, file.stat()) for file in Path(folder).glob("*.safetensors") if file.is_file()]
    return {(file, stat.st_ino, stat.st_mtime_ns) for file, stat in files}


def extend_save_pretrained() -> None:
    """Makes Transformers' `save_pretrained` write what [`attach_saving`] asks for; other models are saved as before.

    Of several processes that quantized a model together, the main one writes, and it alone pushes to the Hub.

    Transformers has no hook that tells a quantizer the folder. A method on the one object instead would hold that
    object, which would then live until the next garbage collection.
    """
    save, push = PreTrainedModel.save_pretrained, PreTrainedModel.push_to_hub

    @functools.wraps(push)
    def push_to_hub(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        beside = vars(self).get("_qaig_beside")
        return None if beside is not None and beside.writer.is_other else push(self, *args, **kwargs)

    @functools.wraps(save)
    def save_pretrained(
        self: PreTrainedModel,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        beside, only_adapter = vars(self).get("_qaig_beside"), getattr(self, "_hf_peft_config_loaded", False)

        def save_all() -> None:
            before = _weight_files(save_directory)
            save(self, save_directory, is_main_process, *args, **kwargs)
            if beside is not None and is_main_process and not only_adapter and os.path.isdir(save_directory):
                for file, _, _ in _weight_files(save_directory) - before:
                    open_to_umask(file)
                _remove_older_whole_file(Path(save_directory))
                beside.write(self, Path(save_directory))

        if beside is None:
            save_all()
        else:
            beside.writer.write(save_directory, save_all, is_main_process)

    PreTrainedModel.save_pretrained = save_pretrained  # type: ignore[method-assign]
    PreTrainedModel.push_to_hub = push_to_hub  # type: ignore[method-assign, assignment]
