"""Quantizes one target: its chunks, its outputs for the samples, and its place in the model."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import nn

from ..execution.block_outputs import OutputError, is_finite_where
from ..execution.dense_copy import fast_to_run
from ..execution.exclusions import NotFinite
from ..execution.layer_inputs import TargetInputs, first_tensor, forward
from ..execution.row_chunks import RowChunk, concat_outputs, row_chunks_of
from ..execution.stream_errors import StreamErrors
from ..execution.targets import Target
from ..formats.scheme import Plan
from ..loading.tied_embeddings import replace_everywhere
from ..nn.linear import QAIGLinear
from ..report.summary import TargetSummary
from ..rounding.packed_layers import concat_rows, pack_embedding
from .block_quantizer import BlockQuantizer
from .decisions import BlockDecisions, cast_like, dtype_of, in_float32, pack
from .paused_samples import PausedSamples
from .quantizer_settings import QuantizerSettings
from .resume import BlockResult, BlockStore


@dataclass(frozen=True)
class TargetResult:
    """A quantized target, which is not in the model yet.

    Attributes:
        target: in full precision.
        chunks: in which it was quantized.
        results: of each chunk.
        seconds: wall time.
    """

    target: Target
    chunks: Sequence[RowChunk]
    results: Sequence[BlockResult]
    seconds: float

    @property
    def schemes(self) -> Plan:
        """Path of every packed weight in the model → how it is stored."""
        target = self.target
        if isinstance(target.module, (nn.Linear, nn.Embedding)):
            (scheme,) = self.results[0].schemes.values()
            return {target.path: scheme}
        return {f"{target.path}.{name}": scheme for name, scheme in self.results[0].schemes.items()}


@dataclass
class TargetErrors:
    """The errors of a quantized target's outputs, of one sample or of all.

    Attributes:
        chunks: of each chunk's output.
        streams: of what came in, and where the error is, if the target was quantized as a whole.
        not_finite: which output of the sample is not finite; "" if all are.
        seconds: wall time of the forward passes.
    """

    chunks: list[OutputError] = field(default_factory=list)
    streams: StreamErrors = field(default_factory=StreamErrors)
    not_finite: str = ""
    seconds: float = 0.0

    @property
    def whole(self) -> OutputError:
        """The error of the whole target's output; its value is NaN if there was nothing to measure."""
        return OutputError(sum(each.error for each in self.chunks), sum(each.power for each in self.chunks))

    def join(self, other: TargetErrors) -> None:
        """Adds the errors of other samples."""
        for total, error in zip(self.chunks, other.chunks):
            total.join(error)
        self.streams.join(other.streams)


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


class Outcome(NamedTuple):
    """The schemes and the summary of a target, once it is in the model.

    Attributes:
        schemes: path of every packed weight in the model → how it is stored.
        summary: of the target.
    """

    schemes: Plan
    summary: TargetSummary


def install(model: nn.Module, result: TargetResult, errors: TargetErrors, store: BlockStore) -> Outcome:
    """Keeps a quantized target in `store`, and puts it into the model, in its place.

    One that comes from `store` must have the error that it was kept with.
    """
    seconds = (result.seconds + errors.seconds) / len(result.chunks)
    for chunk, became, error in zip(result.chunks, result.results, errors.chunks):
        store.check(became.summary, error.value)
        if not isinstance(chunk.module, nn.Embedding):
            summary = replace(became.summary, error=error.value, seconds=seconds)
            store.save(chunk.path, replace(became, summary=summary))
    _replace_modules(model, result)
    return Outcome(result.schemes, _summary_of(result, errors))


def _summary_of(result: TargetResult, errors: TargetErrors) -> TargetSummary:
    """Returns the summary of all chunks of a target together."""
    path, chunks, summaries = result.target.path, result.chunks, [became.summary for became in result.results]
    error, seconds = errors.whole.value, result.seconds + errors.seconds
    if len(summaries) == 1:
        found = {name: getattr(errors.streams, name).value for name in ("entering", "pictures", "text")}
        return replace(summaries[0], path=path, error=error, seconds=seconds, **found)
    return TargetSummary(
        path,
        error,
        [f"{what}, {c.rows}" for c, summary in zip(chunks, summaries) for what in summary.accepted],
        [f"{what}, {c.rows}" for c, summary in zip(chunks, summaries) for what in summary.rejected],
        seconds=seconds,
        resumed=all(summary.resumed for summary in summaries),
        to_nearest={f"{name}, {c.rows}": w for c, s in zip(chunks, summaries) for name, w in s.to_nearest.items()},
        damping={f"{name}, {c.rows}": d for c, s in zip(chunks, summaries) for name, d in s.damping.items()},
    )


def _replace_modules(model: nn.Module, result: TargetResult) -> None:
    target, modules = result.target.module, [became.module for became in result.results]
    if isinstance(target, nn.Linear):
        linears = [module.get_submodule("linear") for module in modules]
        assert all(isinstance(linear, QAIGLinear) for linear in linears)
        replace_everywhere(model, target, concat_rows(linears).cpu())  # type: ignore[arg-type]
    elif isinstance(target, nn.Embedding):
        replace_everywhere(model, target, modules[0].cpu())
    else:
        _install_block(target, modules[0].cpu())


def _install_block(block: nn.Module, became: nn.Module) -> None:
    """Moves the packed block's contents into the model's own block object, which its parents and hooks refer to."""
    for name, module in became.named_modules():
        if not isinstance(module, nn.Linear) and isinstance(block.get_submodule(name), nn.Linear):
            block.set_submodule(name, module)
    for name, parameter in became.named_parameters():
        own = block.get_parameter(name)
        if own is not parameter:
            own.data.copy_(parameter.data)
