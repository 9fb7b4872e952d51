"""What quantization makes of a block and of a target, as values: neither is in the model yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from ..execution.block_outputs import OutputError
from ..execution.stream_errors import StreamErrors
from ..execution.targets import RowChunk, Target
from ..formats.scheme import Plan
from ..report.summary import TargetSummary


@dataclass
class BlockResult:
    """A quantized block.

    Attributes:
        module: with packed linears.
        schemes: path of each of them in the block → how it is stored.
        summary: of the decisions.
        state: of the token weights, after the block.
    """

    module: nn.Module
    schemes: Plan
    summary: TargetSummary
    state: Mapping[str, int] = field(default_factory=dict)


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

    def summary(self, errors: TargetErrors) -> TargetSummary:
        """Returns the summary of all chunks together, with the errors of the output."""
        path, chunks, summaries = self.target.path, self.chunks, [became.summary for became in self.results]
        error, seconds = errors.whole.value, self.seconds + errors.seconds
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
