"""Writes reports: JSON into a work folder or beside a model, and the page.

model = AutoModelForImageTextToText.from_pretrained(..., quantization_config=QAIGConfig(bits=3))
save_report(model, "out/report.html")  # with samples and token weights of the calibration
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..config import QAIGConfig
from ..utils.files import write
from ..utils.logging import get_logger
from .page.page import page
from .record import Record, as_text, record_of
from .record_file import IN_WORK_DIR, checked
from .summary import QuantizationReport

logger = get_logger(__name__)

PAGE = "qaig_report.html"


def save_report(model: Any, file: str | os.PathLike[str]) -> None:
    """Writes the page of the run that quantized `model`.

    Args:
        model: as `from_pretrained(..., quantization_config=QAIGConfig(...))` returned it.
        file: to write; ends in `.html`.

    Raises:
        ValueError: the model was loaded already quantized: `transformers-qaig report` reads what lies beside it.
    """
    report = getattr(model, "qaig_report", None)
    if not isinstance(report, QuantizationReport):
        raise ValueError(
            "`model` was not quantized in this process, so it has no report. For a saved model run "
            "`transformers-qaig report FOLDER --html report.html`."
        )
    write_page(record_of(report, model.config.quantization_config, with_data=True), Path(file))


def write_page(record: Record, file: Path) -> None:
    """Writes the page of a record."""
    write(file, page(checked(json.loads(as_text(record)))))


class ProgressWriter:
    """Writes what a run has done so far, after each target.

    Args:
        config: of the run: says into which work folder, and to which page.
    """

    def __init__(self, config: QAIGConfig):
        self.config, self.has_failed = config, False

    def write(self, report: QuantizationReport) -> None:
        """Writes the files. It warns once of what cannot be written, and goes on."""
        folder, live = self.config.calibration.work_path, self.config.calibration.live_page
        if folder is None and live is None:
            return
        try:
            record = record_of(report, self.config, with_data=True)
            if folder is not None:
                write(folder / IN_WORK_DIR, as_text(record))
            if live is not None:
                write_page(record, Path(os.path.expanduser(live)))
        except Exception as error:  # hours of calibration are worth more
            if not self.has_failed:
                logger.warning("The report of the run so far cannot be written: %s", error)
            self.has_failed = True
