"""What became of blocks and targets, as values, and `BlockStore`, which keeps finished blocks for a run to resume."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..config import QAIGConfig
from ..data.calibration_data import CalibrationData
from ..distributed.work_folder import SharedFolder, shared_folder
from ..execution.block_outputs import OutputError
from ..execution.stream_errors import StreamErrors
from ..execution.targets import RowChunk, Target
from ..formats.scheme import Plan, Rotation, plan_to_dict
from ..nn.linear import QAIGLinear, get_linear
from ..report.summary import TargetSummary
from ..utils.hashing import digest

FORMAT = 4
"""Version of a finished block's facts."""
TOLERANCE = 1e-2
"""How far a resumed block's output error may be from the recorded one, relative."""


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


class BlockStore(ExitStack):
    """The finished blocks of a run in its `work_dir`, which is locked until the end of this context.

    Resuming replays the finished blocks: each forward pass runs again, and a finished block's packed weights come from
    its file instead of being searched. A replayed block must show the output error it was saved with.

    Args:
        config: of the run; without a `work_dir` nothing is kept.
        plan: what is packed and how.
        data: to calibrate with; the main one of its ranks reads and writes.
        model: in full precision; hashed if there is a `work_dir`.

    Raises:
        ValueError: the folder belongs to a run with another model, configuration or calibration data, is in use, or
            cannot be written.
    """

    def __init__(self, config: QAIGConfig, plan: Plan, data: CalibrationData, model: nn.Module):
        super().__init__()

        def run(alive: Callable[[], None]) -> dict[str, Any]:
            return {
                "format": FORMAT,
                "config": {**config.to_dict(), "plan": None},
                "plan": plan_to_dict(plan),
                **run_facts(config, data, model, alive),
            }

        self.folder = self.enter_context(shared_folder(config.calibration.work_path, run, data.ranks))

    def load(self, path: str, block: nn.Module, schemes: Plan) -> BlockResult | None:
        """Returns the finished block at `path`, or None."""
        return None if self.folder is None else self.folder.load_as(path, partial(_result_of, block, schemes))

    def keep(self, result: TargetResult, errors: TargetErrors) -> None:
        """Keeps the blocks of a quantized target; embeddings are not kept.

        Raises:
            RuntimeError: a resumed block does not reproduce its recorded output error.
        """
        seconds = (result.seconds + errors.seconds) / len(result.chunks)
        for chunk, became, error in zip(result.chunks, result.results, errors.chunks):
            _check_resumed(became.summary, error.value)
            if not isinstance(chunk.module, nn.Embedding):
                summary = replace(became.summary, error=error.value, seconds=seconds)
                self.save(chunk.path, replace(became, summary=summary))

    def save(self, path: str, result: BlockResult) -> None:
        """Keeps a finished block, unless it was resumed. Its tensors are mapped from the file from then on."""
        if self.folder is None:
            return
        if not result.summary.resumed:
            self._write(self.folder, path, result)
        tensors = self.folder.tensors(path)
        if tensors is not None:
            result.module.load_state_dict(tensors, assign=True)

    @staticmethod
    def _write(folder: SharedFolder, path: str, result: BlockResult) -> None:
        summary = {k: v for k, v in asdict(result.summary).items() if k not in ("token_weights", "resumed")}
        rotations = {
            name: scheme.rotation._asdict() for name, scheme in result.schemes.items() if scheme.rotation is not None
        }
        facts = {"summary": summary, "rotations": rotations, "token_weights": result.state}
        folder.save(path, result.module.state_dict(), {name: json.dumps(fact) for name, fact in facts.items()})


def run_facts(
    config: QAIGConfig, data: CalibrationData, model: nn.Module, alive: Callable[[], None]
) -> dict[str, str | bool]:
    """Returns what changes the result of a run, and is not in its config.json; all weights are read for it."""
    facts: dict[str, str | bool] = {
        "samples": digest(data.samples),
        "weights": digest([model.state_dict()], alive),
        "attn_implementation": str(getattr(getattr(model, "config", None), "_attn_implementation", None)),
    }
    if config.calibration.moe_calibrate_all_experts:
        facts["moe_calibrate_all_experts"] = True
    return facts


def _result_of(block: nn.Module, schemes: Plan, tensors: dict[str, Tensor], facts: Mapping[str, str]) -> BlockResult:
    """Makes a finished block of what its file holds, on the device of the block in full precision."""
    module, rotations = copy.deepcopy(block), json.loads(facts["rotations"])
    became = {}
    for name, scheme in schemes.items():
        linear = get_linear(module, name)
        rotation = Rotation(**rotations[name]) if name in rotations else None
        if rotation is not None:
            rotation.check(linear.in_features)
        became[name] = replace(scheme, rotation=rotation)
        dtype = tensors[f"{name}.weight_scale"].dtype
        module.set_submodule(name, QAIGLinear.like(linear, became[name], dtype=dtype))
    devices = {name: tensor.device for name, tensor in module.state_dict().items()}
    module.load_state_dict({name: tensor.to(devices[name]) for name, tensor in tensors.items()}, assign=True)
    return BlockResult(module, became, _summary_of(facts), json.loads(facts["token_weights"]))


def _summary_of(facts: Mapping[str, str]) -> TargetSummary:
    stored, example = json.loads(facts["summary"]), TargetSummary("")
    for name, value in stored.items():
        if type(value) is not type(getattr(example, name)):
            raise TypeError(f"`{name}` of its summary is a {type(value).__name__}")
    return TargetSummary(**stored, resumed=True)


def _check_resumed(summary: TargetSummary, error: float) -> None:
    if not summary.resumed or math.isnan(summary.error) or math.isclose(summary.error, error, rel_tol=TOLERANCE):
        return
    raise RuntimeError(
        f"{summary.path}: resumed with an output error of {error:.4e}, but {summary.error:.4e} was recorded when "
        "it was finished; the forward passes are not the same as then. Start again with an empty `work_dir`."
    )
