"""Quantizes one target, runs it on the samples, and puts it into the model, in its place."""

from __future__ import annotations

import copy
import time
from contextlib import ExitStack
from typing import Any

from torch import nn

from ..execution.block_outputs import OutputError, first_tensor, is_finite_where
from ..execution.dense_copy import fast_to_run
from ..execution.exclusions import NotFinite
from ..execution.layer_inputs import TargetInputs, forward
from ..execution.targets import RowChunk, Target, concat_outputs, row_chunks_of
from ..formats.scheme import Plan
from ..loading.tied_embeddings import replace_everywhere
from ..nn.linear import QAIGLinear
from ..report.summary import TargetSummary
from ..rounding.packed_layers import concat_rows, pack_embedding
from .block_quantizer import BlockQuantizer
from .decisions import BlockDecisions, cast_like, dtype_of, in_float32, pack
from .paused_samples import PausedSamples
from .quantizer_settings import QuantizerSettings
from .resume import BlockResult, BlockStore, TargetErrors, TargetResult


def quantize_target(
    target: Target, plan: Plan, inputs: TargetInputs, settings: QuantizerSettings, store: BlockStore
) -> TargetResult:
    """Quantizes a target, or reads it from `store`. The model stays as it is."""
    start, chunks = time.perf_counter(), row_chunks_of(target, plan)
    results = [_quantize_chunk(chunk, inputs, settings, store) for chunk in chunks]
    return TargetResult(target, chunks, results, time.perf_counter() - start)


def _quantize_chunk(
    chunk: RowChunk, inputs: TargetInputs, settings: QuantizerSettings, store: BlockStore
) -> BlockResult:
    if isinstance(chunk.module, nn.Embedding):
        module = pack_embedding(chunk.module, chunk.schemes[""], settings.recipe)
        return BlockResult(module, chunk.schemes, TargetSummary(chunk.path))
    known = store.load(chunk.path, chunk.module, chunk.schemes)
    if known is None:
        return quantize_block(chunk.module, chunk.path, chunk.schemes, inputs, settings)
    settings.token_weights.restore(known.state)
    if known.summary.left_out:
        inputs.exclude_samples(dict(known.summary.left_out))
    return known


def quantize_block(
    block: nn.Module, path: str, schemes: Plan, inputs: TargetInputs, settings: QuantizerSettings
) -> BlockResult:
    """Packs a block's linears. Arguments as in [`decide`]; the block is not changed."""
    if not schemes:
        return BlockResult(copy.deepcopy(block), {}, TargetSummary(path), settings.token_weights.state())
    decisions, summary = decide(block, path, schemes, inputs, settings)
    module = cast_like(pack(in_float32(block), decisions, dtype_of(block, schemes), path), block)
    return BlockResult(module, decisions.schemes, summary, settings.token_weights.state())


def decide(
    block: nn.Module, path: str, schemes: Plan, inputs: TargetInputs, settings: QuantizerSettings
) -> tuple[BlockDecisions, TargetSummary]:
    """Makes the decisions for a block. Arguments as in [`BlockQuantizer`], but `inputs` may hold no sample.

    If a sample is not finite on the way, it is left out, and the block is begun again without it.
    """
    recipe, token_weights = settings.recipe, settings.token_weights
    before, left_out = token_weights.state(), []
    while recipe.calibrates and inputs.samples():
        token_weights.restore(before)
        quantizer = BlockQuantizer(block, path, schemes, inputs, settings)
        try:
            decisions = quantizer.decide()
        except NotFinite as found:
            left_out.append((found.sample, f"{found.where} in {path}"))
            inputs.exclude_samples(dict(left_out[-1:]))
        else:
            quantizer.summary.left_out = left_out
            return decisions, quantizer.summary
    return BlockDecisions(schemes, recipe.include_zero), TargetSummary(path, left_out=left_out)


def advance(result: TargetResult, inputs: TargetInputs, paused: PausedSamples | None) -> TargetErrors:
    """Runs the target on every sample, in full precision and quantized, and measures the errors of its output.

    Args:
        result: of the target.
        inputs: the samples that wait at the target. One whose output is not finite is left out.
        paused: what goes on to the next target with the two outputs; None: the samples end here.
    """
    start = time.perf_counter()

    def run(sample: int) -> TargetErrors:
        call, call_q, mask = inputs.full[sample], inputs.quantized[sample], inputs.masks[sample]
        outputs: list[tuple[Any, Any]] = []
        found = TargetErrors()
        for chunk, became in zip(result.chunks, running):
            output = forward(chunk.module, call, on_trial=False)
            output_q = forward(became, call_q, on_trial=False)
            error = OutputError()
            if not error.add(output_q, output, mask):
                whose = "quantized" if is_finite_where(mask, first_tensor(output)) else "full-precision"
                found.not_finite = f"the {whose} output of {chunk.path}"
                return found
            found.chunks.append(error)
            if len(result.chunks) == 1:
                found.streams.add((call_q, call), (output_q, output), mask, inputs.pictures.get(sample))
            if paused is not None:
                outputs.append((output, output_q))
        if paused is not None:
            paused.resume(sample, map(concat_outputs, zip(*outputs)))
        return found

    samples, total = inputs.samples(), TargetErrors([OutputError() for _ in result.chunks])
    with ExitStack() as stack:
        running = [stack.enter_context(fast_to_run(one.module)) for one in result.results] if inputs.full else []
        found_of = inputs.of_each(samples, run)
    for sample, found in zip(samples, found_of):
        total.join(found)
        if found.not_finite:
            inputs.exclude_samples({sample: found.not_finite})
    total.seconds = time.perf_counter() - start
    return total


def install(model: nn.Module, result: TargetResult) -> None:
    """Puts a quantized target into the model, in its place."""
    target, became = result.target.module, [each.module for each in result.results]
    if not isinstance(target, (nn.Linear, nn.Embedding)):
        _install_block(target, became[0].cpu())
    elif isinstance(target, nn.Embedding):
        replace_everywhere(model, target, became[0].cpu())
    else:
        linears = [rows.get_submodule("linear") for rows in became]
        assert all(isinstance(linear, QAIGLinear) for linear in linears)
        replace_everywhere(model, target, concat_rows(linears).cpu())  # type: ignore[arg-type]


def _install_block(block: nn.Module, became: nn.Module) -> None:
    """Moves the packed block's contents into the model's own block object, which its parents and hooks refer to."""
    for name, module in became.named_modules():
        if not isinstance(module, nn.Linear) and isinstance(block.get_submodule(name), nn.Linear):
            block.set_submodule(name, module)
    for name, parameter in became.named_parameters():
        own = block.get_parameter(name)
        if own is not parameter:
            own.data.copy_(parameter.data)
