"""The conductor: every sample is a paused forward pass, blocks are treated in order, and what is chosen is packed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..config import QAIGConfig
from ..data.loader import picture_masks
from ..data.samples import token_mask
from ..equalization.finder import GroupFinder
from ..execution.block_outputs import check_calls, first_tensor, forward
from ..execution.interceptor import TargetInputs
from ..execution.offload import around
from ..execution.out_of_memory import out_of_memory_explained
from ..execution.paused_forward import PausedForwards, leaving_out, resident
from ..execution.torch_state import default_torch_state
from ..loading.tied_embeddings import stored_once
from ..nn.linear import QAIGLinear
from ..plan.coverage import Coverage, Plan
from ..report.summary import BlockSummary, QuantizationReport
from ..structure import find_decoder_blocks
from ..token_weights.weigher import TokenWeigher, precomputed_weights
from ..utils.logging import get_logger, tqdm
from .block_quantizer import QuantizerSettings, quantize_block
from .embeddings import quantize_embedding
from .exclusions import Exclusions, numbered, overflow_advice
from .group_inputs import is_finite_where
from .overflow import check_forward
from .resume import BlockStore
from .row_chunks import ALL_REAL, install, merged, row_chunks_of, together
from .targets import Target, find_targets

logger = get_logger(__name__)


@default_torch_state()
def calibrate(
    model: PreTrainedModel,
    plan: Plan,
    coverage: Coverage,
    samples: Sequence[Mapping[str, Any]],
    config: QAIGConfig,
    answers: Sequence[Tensor] | None = None,
    exclusions: Exclusions | None = None,
) -> QuantizationReport:
    """
    Quantize `model` in place, as `plan` and the recipe say: station after station, in the order in which they run.

    Args:
        model: in full precision, in evaluation mode, on the CPU.
        plan, coverage: from [`make_plan`]; not changed.
        samples: model inputs on the CPU, one conversation each; may be empty for a recipe that reads no data.
        config: recipe, seed, work folder, calibration device.
        answers: bool [B, T] per sample, True at its answers' tokens, for recipes that ask for them; None: at all.
        exclusions: samples that are left out already; those in which NaN or Inf turns up are added.

    Returns:
        what was done; its plan is the given one without the rotations that were not kept.

    Raises:
        torch.OutOfMemoryError: the message says what would need less memory.
        ValueError: `work_dir` belongs to another run, is in use by one, or cannot be written; or NaN or Inf turned up
            in too many samples.
    """
    with BlockStore(config, plan, samples, model) as store:
        return _calibrate(model, plan, coverage, samples, config, answers, exclusions, store)


def _calibrate(
    model: PreTrainedModel,
    plan: Plan,
    coverage: Coverage,
    samples: Sequence[Mapping[str, Any]],
    config: QAIGConfig,
    answers: Sequence[Tensor] | None,
    exclusions: Exclusions | None,
    store: BlockStore,
) -> QuantizationReport:
    """As [`calibrate`]; what is finished is kept in `store`."""
    start = time.perf_counter()
    recipe = config.recipe
    device = config.calibration.device or torch.accelerator.current_accelerator(check_available=True)
    samples, masks = numbered(samples), [token_mask(sample) for sample in samples]
    exclusions = exclusions or Exclusions(len(samples))
    plan = {path: dict(entry) for path, entry in plan.items()}
    report = QuantizationReport(str(recipe), coverage, plan, len(samples), int(sum(mask.sum() for mask in masks)))
    with out_of_memory_explained("in the first forward passes", device, report):
        if not recipe.calibrates:
            check_forward(model, device)
        stations, unreached = find_targets(model, stored_once(model, coverage.outside), samples, device)
    doors = [station.module for station in stations]
    blocks = list(find_decoder_blocks(model).values())
    with out_of_memory_explained("in the first forward passes", device, report):
        seen = answers or masks, picture_masks(model, samples)
        given = precomputed_weights(model, blocks, samples, masks, *seen, recipe, device, exclusions)
    weigher = TokenWeigher(recipe, config.seed, given)
    tools = QuantizerSettings(recipe, GroupFinder(model, config.seed), weigher, config.seed, config.activation_bits)
    with (
        around(model, doors, device if samples else None) as visits,
        PausedForwards(model, doors, samples, inputs_device="cpu") as full,
        PausedForwards(model, doors, samples, inputs_device="cpu") as quantized,
        tqdm(stations, desc=f"Quantizing ({recipe.name})", unit="block") as bar,
    ):

        def go_on(sample: int, output: Any, output_q: Any) -> None:
            full.resume(sample, output)
            quantized.resume(sample, output_q)

        leave_out = leaving_out(exclusions, samples, overflow_advice(model.dtype), full, quantized)
        for index, station in enumerate(bar):
            last = station is stations[-1]  # what follows it is not needed
            with out_of_memory_explained(f"at {station.path}", device, report), resident(station.module, device):
                report.bytes_per_sample = max(report.bytes_per_sample, full.nbytes() / max(len(samples), 1))
                real = masks if station.reads_text else [ALL_REAL] * len(masks)
                streams = TargetInputs(full.waiting(index), quantized.waiting(index), real, leave_out)
                check_calls(streams, station.path)
                visits.leave()  # the tower has seen all samples, and its place on the device is wanted
                weigher.block = next((i for i, block in enumerate(blocks) if block is station.module), None)
                weigher.calls = sum(block.searches for block in report.blocks)
                summary = quantize_target(model, station, plan, streams, tools, store, None if last else go_on)
            report.blocks.append(summary)
            if math.isfinite(summary.error):
                bar.set_postfix(error=f"{summary.error:.2e}")
    for station in unreached:
        logger.warning("%s: runs several times in a forward pass, or never; rounded without data.", station.path)
        report.blocks.append(quantize_target(model, station, plan, TargetInputs({}, {}, []), tools, store))
    used = [mask for sample, mask in zip(samples, masks) if sample not in exclusions]
    report.num_samples, report.num_tokens = len(used), int(sum(mask.sum() for mask in used))
    report.left_out = dict(exclusions.where)
    report.seconds = time.perf_counter() - start
    return report


def quantize_target(
    model: PreTrainedModel,
    station: Target,
    plan: Plan,
    streams: TargetInputs,
    tools: QuantizerSettings,
    store: BlockStore,
    go_on: Callable[[int, Any, Any], None] | None = None,
) -> BlockSummary:
    """
    Quantize one station in place, and let the samples that wait there go on, if there is somewhere to go:
    `go_on(sample, output, output_q)`. What it becomes is kept in `store`, or found there, and `plan`
    is made to say it.
    """
    start, parts = time.perf_counter(), row_chunks_of(station, plan)
    for part in parts:
        if isinstance(part.block, nn.Embedding):
            part.result = quantize_embedding(part.block, part.entries[""], tools.recipe)
            continue
        part.result, part.summary = store.load(part.path, part.block, part.entries) or quantize_block(
            part.block, part.path, part.entries, streams, tools
        )
        if part.summary.resumed and part.summary.left_out:
            streams.leave_out(dict(part.summary.left_out))
        for name, module in part.result.named_modules():
            if isinstance(module, QAIGLinear):
                module.activation_bits = tools.activation_bits
                _record(module, part.entries[name])
    for sample, call in streams.calls.items():
        call_q, outputs = streams.calls_q[sample], []
        for part in parts:
            output, output_q = forward(part.block, call), forward(part.result, call_q)
            if not part.error.add(output_q, output, streams.masks[sample]):
                full_is_finite = is_finite_where(streams.masks[sample], first_tensor(output))
                whose = "quantized" if full_is_finite else "full-precision"
                streams.leave_out({sample: f"the {whose} output of {part.path}"})
                break
            if go_on is not None:
                outputs.append((output, output_q))
        else:
            if go_on is not None:
                go_on(sample, *(together(rows) for rows in zip(*outputs)))
    for part in parts:
        store.check(part.summary, part.error.value)
        part.summary.error, part.summary.seconds = part.error.value, (time.perf_counter() - start) / len(parts)
        if not isinstance(part.block, nn.Embedding):
            store.save(part.path, part.result, part.summary)
    install(model, station, parts)
    return merged(station.path, parts)


def _record(module: QAIGLinear, entry: dict[str, Any]) -> None:
    """Make the plan's entry say how the input is rotated."""
    entry.pop("rotation", None)
    if module.rotation is not None:
        entry["rotation"] = module.rotation._asdict()
