"""`QuantizationRun`: quantizes one model, from the checks before its weights are read to the packed model."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace as replaced
from functools import partial

import torch
from transformers import PreTrainedModel

from ..config import QAIGConfig
from ..data.calibration_data import CalibrationData
from ..data.loader import load_inputs
from ..distributed import ALONE
from ..distributed.alike import require_alike
from ..distributed.joining import join
from ..formats.scheme import Plan
from ..loading.arguments import loading_arguments
from ..loading.dispatch import Placement
from ..loading.experts import linearize_experts, stack_experts
from ..loading.full_precision import ConvertedWeights, check_weights
from ..loading.packed_modules import fits_in_kernel_layout, to_kernel_layout
from ..loading.source import Source
from ..loading.text_config import mark_text_config
from ..loading.tied_embeddings import install_tied_embeddings
from ..loading.unused_tensors import UnusedTensor
from ..nn.experts_layout import ExpertsLayout, find_experts
from ..plan.alternatives import faster_setting, smaller_setting
from ..plan.experts import parameter_names, saved_plan
from ..report.base_model import BaseModel
from ..report.files import ProgressWriter
from ..report.summary import QuantizationReport
from ..utils.errors import SettingError
from ..utils.files import require_writable
from ..utils.hashing import digest
from ..utils.logging import get_logger, quiet
from ..utils.scratch import ScratchFiles
from .planned_widths import PlannedWidths
from .saving.processor_and_card import ProcessorToSave, attach_saving
from .saving.trial import try_saving

logger = get_logger(__name__)


class QuantizationRun:
    """One model's way from full precision to packed: `prepare` before its weights are read, `finish` after.

    Args:
        config: a copy of the user's, validated.
        placement: where the packed model goes.
        source: where the weights come from.
        dtype: in which Transformers loads them.

    Attributes:
        converted: keeps weights in files that are converted on loading, from `prepare` on.
        widths: the plan; under a budget it is chosen in `finish`.
        base: what is known of the unquantized model, for the card.
        ranks: the processes that quantize it together, from `prepare` on.
    """

    def __init__(self, config: QAIGConfig, placement: Placement, source: Source, dtype: torch.dtype | None):
        self.config, self.placement, self.source, self.dtype = config, placement, source, dtype
        self.converted: ConvertedWeights | None = None
        self.widths = PlannedWidths(config)
        self.base = BaseModel()
        self._stacks: dict[str, ExpertsLayout] = {}
        self._data = CalibrationData()
        self._progress = ProgressWriter(config)
        self._model_name = ""
        self._times: dict[str, float] = {}
        self._faster = ""
        self.ranks = ALONE

    @property
    def plan(self) -> Plan:
        """Weight path to scheme."""
        return self.widths.plan

    @property
    def unused(self) -> list[UnusedTensor]:
        """Stored tensors that the model has no place for, to be saved again."""
        return self.widths.unused

    def prepare(self, model: PreTrainedModel, checkpoint_files: Sequence[str]) -> None:
        """Plans, tries placement and saving without weights, and loads the samples: what fails, fails here.

        Args:
            model: on the meta device.
            checkpoint_files: paths of the shards.

        Raises:
            ValueError: a setting, the coverage, the budget, the placement or the data is wrong; the message says which.
            OSError: a folder cannot be written.
        """
        self.ranks = join()
        with self.ranks.guarded(), quiet(not self.ranks.is_main):
            self._prepare(model, checkpoint_files)
        scratch = ScratchFiles(self.config.calibration.work_path)
        self.converted = ConvertedWeights(model, checkpoint_files, self.dtype, scratch)

    def _prepare(self, model: PreTrainedModel, checkpoint_files: Sequence[str]) -> None:
        if self.ranks.size > 1 and self.config.recipe.token_weights == "shuffled":
            raise SettingError(
                "`token_weights='shuffled'` draws from one stream of random numbers: quantize in one process."
            )
        run, name = self.config.calibration, model.name_or_path or ""
        settings = repr((self.config.to_dict(), run.moe_calibrate_all_experts))
        require_alike(self.ranks, lambda: {"settings": settings, "`work_dir`": str(run.work_dir is not None)})
        self._model_name = os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name
        if run.work_path is not None:
            self.ranks.on_main(partial(require_writable, run.work_path, "work_dir"))
        self._stacks = find_experts(model)
        self.widths.make(model, checkpoint_files)
        self._try_placing_and_saving(model, checkpoint_files)
        access = self._with_token_of_weights()
        self.base = BaseModel.of(self.source, access.calibration.token)
        if self.config.recipe.calibrates or self.widths.options:
            with self._timed("samples"):
                self._data = data = load_inputs(model, access, self.source, self.ranks)
                read = [*data.samples, *({"answers": answer} for answer in data.answer_masks)]
                require_alike(self.ranks, lambda: {"calibration samples": digest(read)})
            if self.widths.options and not any(bool(answer.any()) for answer in data.answer_masks):
                self.widths.use_uniform("No calibration sample has an answer, by which widths are chosen")
            tokens = sum(mask.numel() for mask in data.token_masks) // max(len(data.samples), 1)
            self._faster = faster_setting(model, self.config, self.widths.coverage, tokens)
        else:
            self._data = CalibrationData(ranks=self.ranks)
            _warn_of_unread(self.config)
            if run.processor is None:
                self.source.fetch(access.calibration.token)

    def finish(self, model: PreTrainedModel) -> None:
        """Calibrates `model` and packs it in place, on its devices. Its config then holds the plan.

        Raises:
            ValueError: a weight is not finite or was in no file, or too many samples are not finite.
            torch.OutOfMemoryError: the message says what would need less memory.
        """
        with self.ranks.guarded(), quiet(not self.ranks.is_main):
            model.qaig_report = report = self._quantize(model)  # type: ignore[assignment]
        self.ranks.leave()
        self.ranks = replaced(self.ranks, group=None)  # which cannot be copied with the model
        attach_saving(model, self._processor(), self.base, self.ranks)
        mark_text_config(model.config)
        with quiet(not self.ranks.is_main):
            logger.info("%s", report)
            self.placement.place(model)
            if self.config.calibration.work_dir is None or fits_in_kernel_layout(model):
                to_kernel_layout(model)

    def _quantize(self, model: PreTrainedModel) -> QuantizationReport:
        assert self.converted is not None
        start, widths, work_path = time.perf_counter(), self.widths, self.config.calibration.work_path
        to_pack = parameter_names({**widths.plan, **dict.fromkeys(widths.options)}, self._stacks)
        check_weights(model, to_pack, self.converted)
        linearize_experts(model, self._stacks, widths.plan)
        report = self._calibrate(model)
        stack_experts(model, None if work_path is None else ScratchFiles(work_path).store)
        install_tied_embeddings(model, report.plan)
        widths.plan, self.config.plan = report.plan, saved_plan(report.plan, self._stacks)
        model.config.quantization_config = self.config
        alternatives = {"faster": self._faster, "smaller": smaller_setting(report.plan, widths.coverage)}
        return replaced(
            self._with_facts(report),
            seconds=time.perf_counter() - start,
            alternatives={what: setting for what, setting in alternatives.items() if setting},
        )

    def _calibrate(self, model: PreTrainedModel) -> QuantizationReport:
        """Chooses widths under a budget, and runs the loop over targets."""
        from ..calibration.pipeline import calibrate  # here: greenlet comes with it, which loading does not need

        widths, on_target = self.widths, self._write_progress if self.ranks.is_main else None
        try:
            if widths.options:
                with self._timed("costs of widths"):
                    widths.allocate(model, self._data)
            with self._timed("calibration"):
                return calibrate(model, widths.plan, widths.coverage, self._data, self.config, on_target)
        finally:
            self._data = CalibrationData(views=self._data.views)
            widths.forget_options()

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._times[what] = time.perf_counter() - start

    def _with_facts(self, report: QuantizationReport) -> QuantizationReport:
        """Returns the report with facts that calibration does not have."""
        costs = self.widths.costs
        return replaced(
            report,
            model_name=self._model_name,
            times=dict(self._times),
            views=self._data.views if self._data.views.lengths else None,
            width_costs=costs,
            budget=None if costs is None else self.config.budget,
        )

    def _write_progress(self, report: QuantizationReport) -> None:
        """Writes what is done so far into the work folder, and the page that was asked for."""
        self._progress.write(self._with_facts(report))

    def _processor(self) -> ProcessorToSave:
        """Returns the processor that calibration used, or would have used."""
        given = self.config.calibration.processor
        if isinstance(given, (str, os.PathLike)):
            return ProcessorToSave(None, self.source.reach(given))
        return ProcessorToSave(given, self.source)

    def _try_placing_and_saving(self, model: PreTrainedModel, checkpoint_files: Sequence[str]) -> None:
        """Places and saves the packed model without weights, so that errors are raised before the calibration."""
        skeleton = self.widths.skeleton(model)
        settings = copy.deepcopy(self.config)
        settings.plan = saved_plan(self.plan, self._stacks)
        self.placement.plan(skeleton)
        tensors = self.widths.count_headers(model, skeleton, checkpoint_files)
        try_saving(model, skeleton, tensors, settings, checkpoint_files)

    def _with_token_of_weights(self) -> QAIGConfig:
        """Returns the settings with what `from_pretrained` may use: the weights' token serves the processor, too."""
        given, config = loading_arguments(), copy.deepcopy(self.config)  # a copy: the token is not kept
        run = config.calibration
        config.calibration = replaced(
            run,
            token=(given.get("download_kwargs") or {}).get("token") if run.token is None else run.token,
            trust_remote_code=run.trust_remote_code or given.get("trust_remote_code") is True,
        )
        return config


def _warn_of_unread(config: QAIGConfig) -> None:
    """Warns of settings for calibration data that the recipe does not read."""
    settings = {"dataset": config.dataset, "columns": config.calibration.columns}
    given = [name for name, value in settings.items() if value is not None]
    if given:
        logger.warning(
            "%s ignored: `recipe=%r` reads no data. Leave it out, or choose a recipe that calibrates, such as "
            "'default'.", " and ".join(f"`{name}`" for name in given), config.recipe.name,
        )  # fmt: skip
