"""The calibration loop: every sample is a paused forward pass, and the model is quantized target by target."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..config import QAIGConfig
from ..data.loader import picture_masks
from ..data.samples import token_mask
from ..distributed import ALONE, Ranks
from ..distributed.joining import device_of
from ..equalization.finder import GroupFinder
from ..execution.block_outputs import check_inputs_of
from ..execution.exclusions import Exclusions, numbered
from ..execution.few_rows import independent_of_thread_count
from ..execution.interceptor import TargetInputs
from ..execution.offload import offloaded
from ..execution.out_of_memory import out_of_memory_explained
from ..execution.overflow import check_forward
from ..execution.paused_forward import PausedForwards, drop_others, sample_excluder, waiting_device
from ..execution.targets import find_targets
from ..execution.torch_state import default_torch_state
from ..plan.coverage import Coverage
from ..report.summary import QuantizationReport, TargetSummary
from ..scheme import Plan
from ..structure import Found, ModelStructure
from ..token_weights.data import WeightingData
from ..token_weights.registry import precompute, token_weights_of
from ..utils.logging import get_logger, tqdm
from ..utils.memory import peak_memory, process_memory, return_freed_memory
from ..utils.readable import readable_size
from .held_back import held_back_every
from .quantizer_settings import settings_of
from .resume import BlockStore
from .target_quantizer import NO_PADDING, NO_PICTURES, Outcome, advance, install, quantize_target

logger = get_logger(__name__)

USUAL_BYTES = 2**14
"""Of a token's hidden states, where the model does not tell."""


@default_torch_state()
def calibrate(
    model: PreTrainedModel,
    plan: Plan,
    coverage: Coverage,
    samples: Sequence[Mapping[str, Any]],
    config: QAIGConfig,
    answer_masks: Sequence[Tensor] | None = None,
    exclusions: Exclusions | None = None,
    on_target: Callable[[QuantizationReport], None] | None = None,
    structure: ModelStructure | None = None,
    ranks: Ranks = ALONE,
) -> QuantizationReport:
    """Quantizes `model` in place, as `plan` and the recipe say: target by target, in execution order.

    Args:
        model: in full precision, in evaluation mode, on the CPU.
        plan: from [`make_plan`].
        coverage: of that plan.
        samples: model inputs on the CPU, one conversation each; may be empty for a recipe that reads no data.
        config: recipe, seed, work folder, calibration device.
        answer_masks: bool `[B, T]` per sample, True at answer tokens, for recipes that ask for them; None marks every
            token.
        exclusions: samples that are left out already; those in which NaN or Inf turns up are added.
        on_target: called with the report so far, after every target.
        structure: of the model; found here if it is not given.
        ranks: over which the samples are spread; all are given the same arguments.

    Returns:
        what was done; its plan is the given one without the rotations that were rejected.

    Raises:
        torch.OutOfMemoryError: the message says what would need less memory.
        ValueError: `work_dir` belongs to another run, is in use by one, or cannot be written; or NaN or Inf turned up
            in too many samples.
    """
    start, samples = time.perf_counter(), numbered(samples)
    masks = [token_mask(sample) for sample in samples]
    structure = structure or ModelStructure.of(model)
    exclusions = exclusions or Exclusions(len(samples), structure.dtype)
    device = device_of(ranks, config.calibration.device)
    with BlockStore(config, plan, samples, model, ranks) as store, independent_of_thread_count(model):
        with out_of_memory_explained("in the first forward passes", device, len(samples), lambda: 0):
            if not config.recipe.calibrates:
                check_forward(model, structure, device)
            outside = structure.without_tied_head(coverage.outside_plan)
            targets, uncalibrated = find_targets(model, structure, outside, samples, device)
            pictures = picture_masks(structure.picture_tokens, samples)
            data = WeightingData(
                model, structure.answering_blocks, samples, masks, answer_masks or masks, pictures, device, exclusions,
                ranks,
            )  # fmt: skip
            token_weights = token_weights_of(config.recipe, config.seed, precompute(config.recipe, data))
            finder = GroupFinder(structure.shared, config.seed)
            settings = settings_of(config, config.recipe, finder, token_weights)
        report = QuantizationReport(str(config.recipe), coverage, num_targets=len(targets) + len(uncalibrated))
        modules, peak_bytes = [target.module for target in targets], 0
        waiting = waiting_device(device, sum(mask.numel() for mask in masks), _token_bytes(structure.embeddings))

        def done(outcome: Outcome) -> None:
            outcome.summary.memory, outcome.summary.device_memory = process_memory(), peak_memory(device)
            report.targets.append(outcome.summary)
            report.plan = {**report.plan, **outcome.schemes}
            report.seconds = time.perf_counter() - start
            if on_target is not None:
                on_target(report)

        with (
            offloaded(model, modules, device) as offload,
            PausedForwards(model, modules, samples, inputs_device=waiting) as full,
            PausedForwards(model, modules, samples, inputs_device=waiting) as quantized,
            tqdm(targets, desc=f"Quantizing ({config.recipe.name})", unit="target") as progress,
        ):
            exclude_samples = sample_excluder(exclusions, samples, full, quantized)
            drop_others(ranks, len(samples), held_back_every(config.recipe), full, quantized)
            for index, target in enumerate(progress):
                with out_of_memory_explained(f"at {target.path}", device, len(samples), lambda: 2 * full.nbytes()):
                    token_masks = [
                        token_mask(s, target.token_input) if target.token_input else NO_PADDING for s in samples
                    ]
                    waiting_here = full.inputs(index), quantized.inputs(index)
                    inputs = TargetInputs(*waiting_here, token_masks, exclude_samples, ranks)
                    peak_bytes = max(peak_bytes, full.nbytes())
                    check_inputs_of(target.path, inputs)
                    with offload.onload(target.module):
                        result = quantize_target(target, plan, inputs, settings, store)
                        shown = dict(enumerate(pictures)) if target.token_input == "input_ids" else NO_PICTURES
                        # What follows the last target is not needed.
                        advance(result, inputs, shown, (full, quantized) if target is not targets[-1] else None)
                    done(outcome := install(model, result, store))
                    del result  # it holds what the model does not need any more, such as dense embeddings
                    return_freed_memory()
                progress.set_postfix(_shown(outcome.summary))
        for target in uncalibrated:
            logger.warning("%s: runs several times in a forward pass, or never; rounded without data.", target.path)
            result = quantize_target(target, plan, TargetInputs({}, {}, [], ranks=ranks), settings, store)
            done(install(model, result, store))
            del result
    used = [mask for sample, mask in zip(samples, masks) if sample not in exclusions]
    report.plan = {**plan, **report.plan}
    report.num_samples, report.num_tokens = len(used), int(sum(mask.sum() for mask in used))
    report.seconds, report.bytes_per_sample = time.perf_counter() - start, peak_bytes / max(len(samples), 1)
    report.left_out = dict(exclusions.where)
    return report


def _shown(summary: TargetSummary) -> dict[str, str]:
    """Returns what the progress bar says of a target beside the time that is left."""
    shown = {"error": f"{summary.error:.2e}"} if math.isfinite(summary.error) else {}
    shown["memory"] = readable_size(8 * (summary.device_memory or summary.memory))
    return shown


def _token_bytes(embeddings: Found) -> int:
    """Returns the bytes of a token's hidden states."""
    weight = getattr(embeddings.module, "weight", None)
    return weight.shape[-1] * weight.element_size() if isinstance(weight, Tensor) else USUAL_BYTES
