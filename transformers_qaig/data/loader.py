"""Loads the calibration set that a config asks for, as one model's inputs."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from itertools import compress
from typing import Any

from transformers import PreTrainedModel

from ..config import QAIGConfig
from ..distributed import ALONE, Ranks
from ..execution.exclusions import Exclusions, Sample, check_inputs
from ..execution.torch_state import default_torch_state
from ..loading.source import Source
from ..rounding.hessian import MIN_TOKENS
from ..structure import picture_tokens
from ..utils.logging import get_logger
from .calibration_data import CalibrationData
from .mixed import check_placeholders
from .model_inputs import ModelInputs
from .samples import answer_mask, are_encoded, load_samples, token_mask
from .tensors import NO_ANSWER, marks_answers, pixels_as
from .views import SampleViews

logger = get_logger(__name__)

FEW = 8
"""With fewer conversations, one or none is held back for validation."""


def load_inputs(
    model: PreTrainedModel,
    config: QAIGConfig,
    source: Source | None = None,
    ranks: Ranks = ALONE,
) -> CalibrationData:
    """Reads the calibration set, once.

    Args:
        model: what the samples are for; may be on the meta device.
        config: data set, processor, number of samples, seed; under a budget, or for a recipe that asks for them, the
            answers are told apart.
        source: where to take the processor from; by default where the model's name says.
        ranks: over which the samples will be spread.

    Returns:
        the samples, without those that have an input that is not finite, and their answers.

    Raises:
        ValueError: no processor, no answer where they are asked for, too many inputs that are not finite, or what
            [`load_samples`] raises.
    """
    if "flash" in (attention := model.config.get_text_config()._attn_implementation or ""):
        raise ValueError(
            f"Calibration computes in float32, which attn_implementation={attention!r} cannot: quantize with "
            "'sdpa' or 'eager', and load the saved model with any."
        )
    picture_ids, exclusions = picture_tokens(model), Exclusions()
    views = SampleViews(picture_ids)
    budget, inputs = config.budget, ModelInputs.of(model, picture_ids)
    # Where a uniform width says the size, the same width is taken for all if there is no answer.
    needs_answers = config.recipe.reads_answers or (budget is not None and budget.uniform is None)
    # Transformers calls us under `torch.device("meta")` and the model's default dtype; processors need neither.
    with default_torch_state():
        samples = load_samples(
            config.dataset,
            _processor(config, source or Source.of(model.name_or_path or "")),
            num_samples=config.num_samples,
            seed=config.seed,
            inputs=inputs,
            columns=config.calibration.columns,
            max_pixels=config.calibration.max_pixels,
            max_length=config.calibration.max_length,
            token=config.calibration.token,
            with_labels=needs_answers or budget is not None or config.recipe.end_to_end or inputs.decoder is not None,
            views=views,
        )
        check_placeholders(model, samples)
        answer_masks = [answer_mask(sample, picture_ids) for sample in samples]
        if needs_answers or budget is not None:
            _warn_of_unmarked(samples, config)
    accepted = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    # Labels would only make the forward compute a loss.
    names = {key for sample in samples for key in sample if (takes_any or key in accepted) and key != "labels"}
    samples = [
        Sample({k: pixels_as(v, model.dtype) for k, v in sample.items() if k in names}, sample.index)
        for sample in samples
    ]
    stay = check_inputs(samples, exclusions)
    samples, answer_masks = list(compress(samples, stay)), list(compress(answer_masks, stay))
    _warn_of_few(samples)
    if needs_answers and not any(bool(mask.any()) for mask in answer_masks):
        asked = "A budget" if config.budget is not None else f"`recipe={config.recipe.name!r}`"
        raise ValueError(
            f"{asked} needs answers, but no calibration sample has one. Give a `dataset` of conversations in which the "
            "assistant answers, or choose another recipe."
        )
    return CalibrationData(samples, answer_masks, exclusions, views, ranks)


def _warn_of_unmarked(samples: Sequence[Sample], config: QAIGConfig) -> None:
    """Warns once of samples in which no answer is marked."""
    unmarked = [sample.index for sample in samples if not marks_answers(sample)]
    if unmarked:
        asked = "the choice of widths" if config.budget is not None else f"`recipe={config.recipe.name!r}`"
        logger.warning(
            "%d of %d calibration conversations mark no answer, and %s needs answers: all their text counts as one. "
            "Give conversations in which the assistant answers, or processor outputs with 'labels' (%d where there is "
            "nothing to predict). The first is number %d.",
            len(unmarked), len(samples), asked, NO_ANSWER, unmarked[0],
        )  # fmt: skip


def _warn_of_few(samples: Sequence[Sample]) -> None:
    """Warns of a set that is too small."""
    tokens = sum(int(token_mask(sample).sum()) for sample in samples)
    if tokens < MIN_TOKENS:
        logger.warning(
            "The calibration set has only %d tokens: below %d, GPTQ and clipping leave weights rounded to nearest. "
            "Give more conversations in `dataset`.", tokens, MIN_TOKENS,
        )  # fmt: skip
    elif len(samples) < FEW:
        logger.warning(
            "The calibration set has only %d conversations (%d tokens): too few for a good model. Give at least %d in "
            "`dataset`; 128 are usual.", len(samples), tokens, FEW,
        )  # fmt: skip


def _processor(config: QAIGConfig, source: Source) -> Any:
    run = config.calibration
    processor = run.processor
    if processor is not None and not isinstance(processor, (str, os.PathLike)):
        return processor
    if processor is not None:
        source = source.reach(processor)
    try:
        return source.load_processor(token=run.token, trust_remote_code=run.trust_remote_code)
    except Exception as error:
        if are_encoded(config.dataset):
            return None
        raise ValueError(
            f"Calibration needs the model's processor, and none could be loaded from {source.described()} ({error}). "
            + (_INSTALL if _lacks_library(error) else "")
            + "Give one: CalibrationConfig(processor=...), an object or where to load it from; or processor outputs "
            "as the dataset; or recipe='rtn', which reads no data."
        ) from error


_INSTALL = "Install the library that this names, as in `pip install torchvision`. Or do without it. "


def _lacks_library(error: BaseException | None) -> bool:
    """Whether something could not be imported."""
    while error is not None and not isinstance(error, ImportError):
        error = error.__cause__ or error.__context__
    return error is not None
