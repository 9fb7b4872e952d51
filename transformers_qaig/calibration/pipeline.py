"""The calibration loop: every sample is a paused forward pass, and the model is quantized target by target."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..config import QAIGConfig
from ..data.loader import picture_masks, picture_tokens
from ..data.samples import token_mask
from ..equalization.finder import GroupFinder
from ..execution.block_outputs import check_inputs_of
from ..execution.exclusions import Exclusions, numbered, overflow_advice
from ..execution.few_rows import independent_of_thread_count
from ..execution.interceptor import TargetInputs
from ..execution.offload import offloaded
from ..execution.out_of_memory import out_of_memory_explained
from ..execution.overflow import check_forward
from ..execution.paused_forward import PausedForwards, sample_excluder
from ..execution.torch_state import default_torch_state
from ..loading.tied_embeddings import without_tied_head
from ..plan.coverage import Coverage
from ..report.summary import QuantizationReport
from ..scheme import Plan
from ..token_weights.data import WeightingData
from ..token_weights.registry import precompute, token_weights_of
from ..utils.logging import get_logger, tqdm
from .quantizer_settings import QuantizerSettings, settings_of
from .resume import BlockStore
from .target_quantizer import NO_PADDING, Outcome, advance, install, quantize_target
from .targets import answering_blocks, find_targets

logger = get_logger(__name__)


@default_torch_state()
def calibrate(
    model: PreTrainedModel,
    plan: Plan,
    coverage: Coverage,
    samples: Sequence[Mapping[str, Any]],
    config: QAIGConfig,
    answer_masks: Sequence[Tensor] | None = None,
    exclusions: Exclusions | None = None,
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

    Returns:
        what was done; its plan is the given one without the rotations that were rejected.

    Raises:
        torch.OutOfMemoryError: the message says what would need less memory.
        ValueError: `work_dir` belongs to another run, is in use by one, or cannot be written; or NaN or Inf turned up
            in too many samples.
    """
    start, samples = time.perf_counter(), numbered(samples)
    masks = [token_mask(sample) for sample in samples]
    exclusions = exclusions or Exclusions(len(samples))
    device = config.calibration.device or torch.accelerator.current_accelerator(check_available=True)
    with BlockStore(config, plan, samples, model) as store, independent_of_thread_count(model):
        with out_of_memory_explained("in the first forward passes", device, len(samples), lambda: 0):
            if not config.recipe.calibrates:
                check_forward(model, device, picture_tokens(model))
            targets, uncalibrated = find_targets(
                model, without_tied_head(model, coverage.outside_plan), samples, device
            )
            settings = _settings(model, samples, masks, answer_masks or masks, config, device, exclusions)
        outcomes: list[Outcome] = []
        modules, peak_bytes = [target.module for target in targets], 0
        with (
            offloaded(model, modules, device) as offload,
            PausedForwards(model, modules, samples, inputs_device="cpu") as full,
            PausedForwards(model, modules, samples, inputs_device="cpu") as quantized,
            tqdm(targets, desc=f"Quantizing ({config.recipe.name})", unit="target") as progress,
        ):
            exclude_samples = sample_excluder(exclusions, samples, overflow_advice(model.dtype), full, quantized)
            for index, target in enumerate(progress):
                with out_of_memory_explained(f"at {target.path}", device, len(samples), lambda: 2 * full.nbytes()):
                    token_masks = [
                        token_mask(s, target.token_input) if target.token_input else NO_PADDING for s in samples
                    ]
                    inputs = TargetInputs(full.inputs(index), quantized.inputs(index), token_masks, exclude_samples)
                    peak_bytes = max(peak_bytes, full.nbytes())
                    check_inputs_of(target.path, inputs)
                    with offload.onload(target.module):
                        result = quantize_target(target, plan, inputs, settings, store)
                        last = target is targets[-1]  # what follows it is not needed
                        advance(result, inputs, *(None, None) if last else (full, quantized))
                        outcomes.append(install(model, result, store))
                        del result  # it holds what the model does not need any more, such as dense embeddings
                if math.isfinite(outcomes[-1].summary.error):
                    progress.set_postfix(error=f"{outcomes[-1].summary.error:.2e}")
        for target in uncalibrated:
            logger.warning("%s: runs several times in a forward pass, or never; rounded without data.", target.path)
            result = quantize_target(target, plan, TargetInputs({}, {}, []), settings, store)
            outcomes.append(install(model, result, store))
            del result
    used = [mask for sample, mask in zip(samples, masks) if sample not in exclusions]
    return QuantizationReport(
        str(config.recipe),
        coverage,
        {**plan, **{path: scheme for outcome in outcomes for path, scheme in outcome.schemes.items()}},
        num_samples=len(used),
        num_tokens=int(sum(mask.sum() for mask in used)),
        targets=[outcome.summary for outcome in outcomes],
        seconds=time.perf_counter() - start,
        bytes_per_sample=peak_bytes / max(len(samples), 1),
        left_out=dict(exclusions.where),
    )


def _settings(
    model: PreTrainedModel,
    samples: Sequence[Any],
    masks: Sequence[Tensor],
    answer_masks: Sequence[Tensor],
    config: QAIGConfig,
    device: torch.device | str | None,
    exclusions: Exclusions,
) -> QuantizerSettings:
    """Returns the settings that stay the same from target to target."""
    recipe, blocks = config.recipe, answering_blocks(model)
    pictures = picture_masks(model, samples)
    data = WeightingData(model, blocks, samples, masks, answer_masks, pictures, device, exclusions)
    token_weights = token_weights_of(recipe, config.seed, precompute(recipe, data))
    return settings_of(config, recipe, GroupFinder(model, config.seed), token_weights)
