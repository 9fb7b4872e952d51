"""Quantizes one target: its chunks, its outputs for the samples, and its place in the model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..execution.block_outputs import OutputError, first_tensor, forward, is_finite_where
from ..execution.dense_copy import dense_copy
from ..execution.interceptor import TargetInputs
from ..execution.paused_forward import PausedForwards
from ..execution.row_chunks import ROWS_PER_CHUNK, RowChunk, concat_outputs, concat_rows, row_chunks_of
from ..execution.stream_errors import StreamErrors
from ..execution.targets import Target
from ..loading.tied_embeddings import replace as replace_everywhere
from ..nn.embedding import QAIGEmbedding
from ..nn.linear import QAIGLinear
from ..recipes import Recipe
from ..report.summary import TargetSummary
from ..rounding.clipping import search_clipping
from ..rounding.quant_grid import QuantizedWeight, grid_arguments, minmax_grid
from ..scheme import Plan, WeightScheme
from .decisions import pack_linear
from .quantize_block import BlockResult, quantize_block
from .quantizer_settings import QuantizerSettings
from .resume import BlockStore

NO_PADDING = torch.ones(0, 0, dtype=torch.bool)
"""A token mask for hidden states that are not the text's, such as an image's: all their tokens are real."""
NO_PICTURES: Mapping[int, Tensor] = {}


@dataclass
class TargetResult:
    """A quantized target.

    Attributes:
        target: in full precision.
        chunks: in which it was quantized.
        results: of each chunk.
        errors: of each chunk's output; filled by [`advance`].
        streams: of the error, if the target was quantized as a whole; filled by [`advance`].
        seconds: wall time, so far.
    """

    target: Target
    chunks: Sequence[RowChunk]
    results: Sequence[BlockResult]
    errors: Sequence[OutputError]
    streams: StreamErrors = field(default_factory=StreamErrors)
    seconds: float = 0.0

    @property
    def error(self) -> float:
        """The relative error of the target's output; NaN if there was nothing to measure."""
        return self._error.value

    @property
    def _error(self) -> OutputError:
        return OutputError(sum(each.error for each in self.errors), sum(each.power for each in self.errors))

    @property
    def schemes(self) -> Plan:
        """Path of every packed weight in the model → how it is stored."""
        target = self.target
        if isinstance(target.module, (nn.Linear, nn.Embedding)):
            (scheme,) = self.results[0].schemes.values()
            return {target.path: scheme}
        return {f"{target.path}.{name}": scheme for name, scheme in self.results[0].schemes.items()}

    @property
    def summary(self) -> TargetSummary:
        """The summary of all chunks together."""
        summaries = [result.summary for result in self.results]
        if len(summaries) == 1:
            found = {name: getattr(self.streams, name).value for name in ("entering", "pictures", "text")}
            return replace(summaries[0], path=self.target.path, error=self.error, seconds=self.seconds, **found)
        return TargetSummary(
            self.target.path,
            self.error,
            [f"{what}, {c.rows}" for c, summary in zip(self.chunks, summaries) for what in summary.accepted],
            [f"{what}, {c.rows}" for c, summary in zip(self.chunks, summaries) for what in summary.rejected],
            seconds=self.seconds,
            resumed=all(summary.resumed for summary in summaries),
            to_nearest={
                f"{name}, {c.rows}": w for c, s in zip(self.chunks, summaries) for name, w in s.to_nearest.items()
            },
        )


def quantize_target(
    target: Target, plan: Plan, inputs: TargetInputs, settings: QuantizerSettings, store: BlockStore
) -> TargetResult:
    """Quantizes a target, or reads it from `store`. The model stays as it is."""
    start, chunks = time.perf_counter(), row_chunks_of(target, plan)
    results = [_quantize_chunk(chunk, inputs, settings, store) for chunk in chunks]
    errors = [OutputError() for _ in chunks]
    return TargetResult(target, chunks, results, errors, seconds=time.perf_counter() - start)


def _quantize_chunk(
    chunk: RowChunk, inputs: TargetInputs, settings: QuantizerSettings, store: BlockStore
) -> BlockResult:
    if isinstance(chunk.module, nn.Embedding):
        module = _quantize_embedding(chunk.module, chunk.schemes[""], settings.recipe)
        return BlockResult(module, chunk.schemes, TargetSummary(chunk.path))
    known = store.load(chunk.path, chunk.module, chunk.schemes)
    if known is None:
        return quantize_block(chunk.module, chunk.path, chunk.schemes, inputs, settings)
    settings.token_weights.restore(known.state)
    if known.summary.left_out:
        inputs.exclude_samples(dict(known.summary.left_out))
    return known


@torch.no_grad()
def _quantize_embedding(embeddings: nn.Embedding, scheme: WeightScheme, recipe: Recipe) -> QAIGEmbedding:
    """Packs embeddings: every row is rounded to nearest on its own grid.

    With a recipe that clips, ranges are clipped where that lowers the row's own squared error. How often a text uses a
    row is not known, so rows are not weighted.
    """
    dtype, chunks = embeddings.weight.dtype, []
    for start in range(0, embeddings.num_embeddings, ROWS_PER_CHUNK):
        weight = embeddings.weight[start : start + ROWS_PER_CHUNK].float()
        arguments = grid_arguments(scheme, dtype, recipe.include_zero)
        if recipe.clipping:
            groups = scheme.num_groups(weight.shape[1])
            moments = torch.eye(weight.shape[1] // groups, device=weight.device).expand(groups, -1, -1)
            clipping = search_clipping(weight, moments, layer="the embeddings", **arguments)
            arguments.update(shrink=clipping.shrink, gain=clipping.gain)
        grid = minmax_grid(weight, **arguments)
        rounded = QuantizedWeight(grid, grid.encode(weight))
        rounded.check_range(dtype, "The weight of the embeddings")
        chunks.append(pack_linear(rounded, None, scheme, dtype))
    return QAIGEmbedding.like(embeddings, scheme).adopt(concat_rows(chunks))


@dataclass
class _Seen:
    """What one sample showed of a target: the error of each chunk's output, its streams, what was not finite."""

    errors: list[OutputError] = field(default_factory=list)
    streams: StreamErrors = field(default_factory=StreamErrors)
    not_finite: str = ""


def advance(
    result: TargetResult,
    inputs: TargetInputs,
    pictures: Mapping[int, Tensor],
    forwards: tuple[PausedForwards, PausedForwards] | None,
) -> None:
    """Runs the target on every sample, in full precision and quantized, and measures its output error.

    Args:
        result: of the target; gets the errors.
        inputs: the samples that wait at the target. One whose output is not finite is left out.
        pictures: bool `[B, T]` by sample, True at tokens of pictures; of no sample if the tokens are not the text's.
        forwards: those that go on with the full-precision output, and with the quantized one; None: they end here.
    """
    start = time.perf_counter()
    running = [dense_copy(became.module) for became in result.results] if inputs.full else []

    def run(sample: int) -> _Seen:
        call, call_q, mask = inputs.full[sample], inputs.quantized[sample], inputs.masks[sample]
        outputs: list[tuple[Any, Any]] = []
        seen = _Seen()
        for chunk, became in zip(result.chunks, running):
            output = forward(chunk.module, call, on_trial=False)
            output_q = forward(became, call_q, on_trial=False)
            error = OutputError()
            if not error.add(output_q, output, mask):
                whose = "quantized" if is_finite_where(mask, first_tensor(output)) else "full-precision"
                seen.not_finite = f"the {whose} output of {chunk.path}"
                return seen
            seen.errors.append(error)
            if len(result.chunks) == 1:
                seen.streams.add((call_q, call), (output_q, output), mask, pictures.get(sample))
            if forwards is not None:
                outputs.append((output, output_q))
        if forwards is not None:
            for paused, rows in zip(forwards, zip(*outputs)):
                paused.resume(sample, concat_outputs(rows))
        return seen

    samples = inputs.samples()
    for sample, seen in zip(samples, inputs.of_each(samples, run)):
        for total, error in zip(result.errors, seen.errors):
            total.join(error)
        result.streams.join(seen.streams)
        if seen.not_finite:
            inputs.exclude_samples({sample: seen.not_finite})
    result.seconds += time.perf_counter() - start


class Outcome(NamedTuple):
    """The schemes and the summary of a target, once it is in the model.

    Attributes:
        schemes: path of every packed weight in the model → how it is stored.
        summary: of the target.
    """

    schemes: Plan
    summary: TargetSummary


def install(model: nn.Module, result: TargetResult, store: BlockStore) -> Outcome:
    """Keeps a quantized target in `store`, and puts it into the model, in its place.

    One that comes from `store` must have the error that it was kept with.
    """
    for chunk, became, error in zip(result.chunks, result.results, result.errors):
        store.check(became.summary, error.value)
        became.summary.error, became.summary.seconds = error.value, result.seconds / len(result.chunks)
        if not isinstance(chunk.module, nn.Embedding):
            store.save(chunk.path, became)
    _replace_modules(model, result)
    return Outcome(result.schemes, result.summary)


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
