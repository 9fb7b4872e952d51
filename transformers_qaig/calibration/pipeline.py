"""The calibration loop: every sample is a paused forward pass, and the model is quantized target by target."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from ..config import QAIGConfig
from ..data.calibration_data import CalibrationData
from ..distributed.joining import device_of
from ..equalization.finder import GroupFinder
from ..execution.cpu_products import cpu_products
from ..execution.held_back import held_back_every
from ..execution.layer_inputs import TargetInputs
from ..execution.offload import offloaded
from ..execution.out_of_memory import out_of_memory_explained
from ..execution.overflow import check_forward
from ..execution.targets import find_targets
from ..execution.torch_state import default_torch_state
from ..formats.scheme import Plan
from ..plan.coverage import Coverage
from ..report.summary import QuantizationReport
from ..structure import ModelStructure
from ..token_weights.data import WeightingData
from ..utils.logging import get_logger, tqdm
from ..utils.memory import peak_memory, process_memory, return_freed_memory
from ..utils.readable import readable_size
from .end_to_end import EndToEnd
from .paused_samples import PausedSamples
from .quantizer_settings import settings_of
from .resume import BlockStore, TargetErrors, TargetResult
from .target_quantizer import advance, install, quantize_target

logger = get_logger(__name__)
Device = torch.device | str | None


@default_torch_state()
def calibrate(
    model: PreTrainedModel,
    plan: Plan,
    coverage: Coverage,
    data: CalibrationData,
    config: QAIGConfig,
    on_target: Callable[[QuantizationReport], None] | None = None,
) -> QuantizationReport:
    """Quantizes `model` in place, as `plan` and the recipe say: target by target, in execution order.

    Args:
        model: in full precision, in evaluation mode, on the CPU.
        plan: from [`make_plan`].
        coverage: of that plan.
        data: to calibrate with; without samples for a recipe that reads none.
        config: recipe, seed, work folder, calibration device.
        on_target: called with the report so far, after every target.

    Returns:
        what was done; its plan is the given one without the rotations that were rejected.

    Raises:
        torch.OutOfMemoryError: the message says what would need less memory.
        ValueError: `work_dir` belongs to another run, is in use by one, or cannot be written; or NaN or Inf turned up
            in too many samples.
    """
    recipe, progress = config.recipe, _Progress(str(config.recipe), coverage, on_target)
    structure, device = ModelStructure.of(model), device_of(data.ranks, config.calibration.device)
    count, every = len(data.samples), held_back_every(recipe)

    def put_in_place(result: TargetResult, errors: TargetErrors) -> None:
        store.keep(result, errors)
        install(model, result)
        progress.add(result, errors, device)

    with BlockStore(config, plan, data, model) as store, cpu_products(structure):
        with out_of_memory_explained("in the first forward passes", device, count, lambda: 0):
            if not recipe.calibrates:
                check_forward(model, structure, device)
            outside = structure.without_tied_head(coverage.outside_plan)
            targets, uncalibrated = find_targets(model, structure, outside, data.samples, device)
            weighting = WeightingData.of(model, structure, data, device)
            settings = settings_of(config, recipe, GroupFinder(structure.shared, config.seed), weighting)
        progress.report.num_targets = len(targets) + len(uncalibrated)
        end_to_end = None
        if recipe.end_to_end:
            with out_of_memory_explained("in full precision", device, count, lambda: 0):
                end_to_end = EndToEnd.remember(model, structure, data, config, device)
        with (
            offloaded(model, [target.module for target in targets], device) as offload,
            PausedSamples(model, structure, targets, data, every, device) as paused,
            tqdm(targets, desc=f"Quantizing ({recipe.name})", unit="target") as bar,
        ):
            for index, target in enumerate(bar):
                with out_of_memory_explained(f"at {target.path}", device, count, lambda: 2 * paused.full.nbytes()):
                    inputs = paused.at(index)
                    with offload.onload(target.module):
                        result = quantize_target(target, plan, inputs, settings, store)
                        # What follows the last target is not needed.
                        errors = advance(result, inputs, paused if target is not targets[-1] else None)
                    put_in_place(result, errors)
                    del result  # it holds what the model does not need any more, such as dense embeddings
                    return_freed_memory()
                bar.set_postfix(progress.last_target())
        for target in uncalibrated:
            logger.warning("%s: runs several times in a forward pass, or never; rounded without data.", target.path)
            inputs = TargetInputs({}, {}, [], ranks=data.ranks)
            result = quantize_target(target, plan, inputs, settings, store)
            put_in_place(result, advance(result, inputs, None))
            del result
        if end_to_end is not None:
            with out_of_memory_explained("while scales were learned end to end", device, count, lambda: 0):
                progress.report.end_to_end = end_to_end.learn(store)
    return progress.finished(plan, data, paused.most_bytes)


class _Progress:
    """Writes the report of a run, target by target.

    Args:
        recipe: its name.
        coverage: of the plan.
        on_target: called with the report so far, after every target.
    """

    def __init__(self, recipe: str, coverage: Coverage, on_target: Callable[[QuantizationReport], None] | None):
        self.report = QuantizationReport(recipe, coverage)
        self._on_target, self._start = on_target, time.perf_counter()

    def add(self, result: TargetResult, errors: TargetErrors, device: Device) -> None:
        """Adds a target."""
        summary = result.summary(errors)
        summary.memory, summary.device_memory = process_memory(), peak_memory(device)
        self.report.targets.append(summary)
        self.report.plan = {**self.report.plan, **result.schemes}
        self.report.seconds = time.perf_counter() - self._start
        if self._on_target is not None:
            self._on_target(self.report)

    def last_target(self) -> dict[str, str]:
        """Returns what the progress bar shows of a target beside the time that is left."""
        summary = self.report.targets[-1]
        shown = {"error": f"{summary.error:.2e}"} if math.isfinite(summary.error) else {}
        shown["memory"] = readable_size(8 * (summary.device_memory or summary.memory))
        return shown

    def finished(self, plan: Plan, data: CalibrationData, most_bytes: int) -> QuantizationReport:
        """Returns the report, with what is known once all targets are done."""
        report, used = self.report, data.used_masks
        report.plan = {**plan, **report.plan}
        report.num_samples, report.num_tokens = len(used), int(sum(mask.sum() for mask in used))
        report.bytes_per_sample = most_bytes / max(len(data.samples), 1)
        report.left_out = dict(data.exclusions.where)
        report.seconds = time.perf_counter() - self._start
        return report
