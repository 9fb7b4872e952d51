"""Summarises a quantization run: a few lines to print, kept on the model as `qaig_report`."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from ..config.budget import BitBudget, why_widths
from ..data.views import SampleViews
from ..formats.scheme import Plan
from ..plan.coverage import Coverage
from ..plan.width_costs import WidthCosts
from ..utils.old_names import warn_of_old_name
from ..utils.readable import readable_time
from .sizes import HEAD, part_rows
from .text import aligned, labelled, sparkline


@dataclass
class TargetSummary:
    """The summary of one target: a block, projector, head or embeddings.

    Attributes:
        path: where it is in the model.
        error: ‖quantized - full precision‖² / ‖full precision‖² of its output over all samples. Each of the two models
            has its own inputs. NaN if it was not measured, as by a recipe that reads no data.
        accepted: steps that lowered the error on validation samples.
        rejected: steps that did not.
        token_weights: sub-block's module → sample → λ [T], for the first samples; empty where λ is uniform.
        seconds: wall time.
        resumed: taken from the work folder.
        left_out: samples that were left out while it was quantized, and where NaN or Inf turned up in them.
        to_nearest: linear that was rounded to nearest although the recipe calibrates → why.
        averaged: stack of experts → how many of them saw too few tokens, and were rounded by the mean of the stack.
        damping: linear → that of GPTQ's Hessian where codes are chosen, and where their target moves.
        entering: the same error of the hidden states that enter it: what earlier targets left.
        pictures, text: the output's error at tokens of pictures, and at all others; NaN if no sample has a picture.
        memory: bytes of the process once it was done.
        device_memory: the most bytes that the accelerator held so far; 0 on the CPU.
    """

    path: str
    error: float = float("nan")
    accepted: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    token_weights: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    seconds: float = 0.0
    resumed: bool = False
    left_out: list[tuple[int, str]] = field(default_factory=list)
    to_nearest: dict[str, str] = field(default_factory=dict)
    averaged: dict[str, int] = field(default_factory=dict)
    damping: dict[str, list[float]] = field(default_factory=dict)
    entering: float = float("nan")
    pictures: float = float("nan")
    text: float = float("nan")
    memory: int = 0
    device_memory: int = 0

    @property
    def importance(self) -> dict[str, dict[int, Tensor]]:
        """`token_weights`, as an earlier version called it."""
        warn_of_old_name("TargetSummary.importance", "token_weights")
        return self.token_weights


@dataclass
class QuantizationReport:
    """The report of a run. `print(report)` shows a few lines, `print(report.details())` all of it.

    Attributes:
        recipe: its name.
        coverage: how much of the language model's blocks was packed, and what each part of the model takes.
        plan: weight path → its scheme, as it was done.
        num_samples, num_tokens: calibration data: conversations, and real tokens in them, without those left out.
        targets: one summary per block, and per projector, head or embeddings that were packed, in order.
        seconds: wall time of measuring costs, calibration and packing.
        bytes_per_sample: the most that a paused sample held at a target, on average.
        left_out: index of a sample that was left out → where NaN or Inf turned up in it.
        num_targets: targets in all; during the run `targets` has fewer.
        model_name: of the unquantized model; of a folder only its name.
        times: part of the run → seconds.
        views: the first samples, and the lengths of all; None without data.
        width_costs: what each width costs and where the plan stands, under a budget.
        end_to_end: what came of learning all scales together; "" if the recipe does not.
        budget: under which widths were chosen by their costs; None if none were.
        alternatives: `"faster"` and `"smaller"` → a setting that would have been so.
    """

    recipe: str
    coverage: Coverage
    plan: Plan = field(default_factory=dict)
    num_samples: int = 0
    num_tokens: int = 0
    targets: list[TargetSummary] = field(default_factory=list)
    seconds: float = 0.0
    bytes_per_sample: float = 0.0
    left_out: dict[int, str] = field(default_factory=dict)
    num_targets: int = 0
    model_name: str = ""
    times: dict[str, float] = field(default_factory=dict)
    views: SampleViews | None = None
    width_costs: WidthCosts | None = None
    end_to_end: str = ""
    budget: BitBudget | None = None
    alternatives: dict[str, str] = field(default_factory=dict)

    @property
    def blocks(self) -> list[TargetSummary]:
        """`targets`, as an earlier version called them."""
        warn_of_old_name("QuantizationReport.blocks", "targets")
        return self.targets

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per packed weight of the blocks, scales and zero points included."""
        return self.coverage.bits_per_weight

    def facts(self) -> list[tuple[str, str]]:
        """Returns name and value of what was done, one line each, without the sizes; also for the model card."""
        facts = [
            ("stored bits", f"{self.bits_per_weight:.2f} per packed weight of the blocks, with scales and zero points"),
            ("packed", f"{self.coverage.packed_fraction:.1%} of the blocks' {self.coverage.total:,} weights"),
        ]
        counts = Counter(scheme.bits for path, scheme in self.plan.items() if path not in self.coverage.outside_plan)
        if self.budget is not None and counts:
            facts.insert(1, ("widths chosen", why_widths(self.budget, counts)))
        if len(counts) > 1:
            facts.insert(1, ("widths", ", ".join(f"{count} × {bits} bits" for bits, count in sorted(counts.items()))))
        if self.coverage.outside_choices:
            facts.append(("outside", "; ".join(self._widths_outside())))
        if self.coverage.skipped:
            facts.append(("not packed", self._reasons()))
        if errors := self._errors():
            worst = max((block for block in self.targets if math.isfinite(block.error)), key=lambda block: block.error)
            span = f"{min(errors):.1e} to {max(errors):.1e}, most in {worst.path}"
            facts.append(("error by block", f"{sparkline([block.error for block in self.targets])}  {span}"))
        accepted, rejected = (sum(map(len, lists)) for lists in self._steps())
        if accepted or rejected:
            why = ": no gain on validation samples" if rejected else ""
            facts.append(("rejected", f"{rejected} of {accepted + rejected} steps{why}"))
        if self.end_to_end:
            facts.append(("end to end", self.end_to_end))
        if averaged := sum(sum(block.averaged.values()) for block in self.targets):
            remedy = "give more samples, or CalibrationConfig(moe_calibrate_all_experts=True)"
            what = "saw too few tokens, and were rounded by the mean of their stacks"
            facts.append(("experts", f"{averaged} {what}: {remedy}"))
        if to_nearest := self._to_nearest():
            reasons = Counter(to_nearest.values()).most_common()
            shown = "; ".join(f"{count} × {reason}" for reason, count in reasons)
            facts.append(("to nearest", f"{len(to_nearest)} linears: {shown}"))
        if self.left_out:
            shown = ", ".join(map(str, sorted(self.left_out)[:8])) + (", …" if len(self.left_out) > 8 else "")
            facts.append(("left out", f"samples {shown}: NaN or Inf in {next(iter(self.left_out.values()))}"))
        return facts + [("checkpoint", line) for line in self.coverage.unused]

    def details(self) -> str:
        """Returns the long form: every part, every block, and what was left out, with reasons."""
        blocks = [("block", "error", "accepted", "rejected", "time")]
        blocks += [
            (
                block.path,
                f"{block.error:.2e}" if math.isfinite(block.error) else "",
                str(len(block.accepted)),
                str(len(block.rejected)),
                "from work_dir" if block.resumed else readable_time(block.seconds),
            )
            for block in self.targets
        ]
        parts = [self._title(), self._sizes(every_part=True), labelled(self.facts()), aligned(blocks)]
        rejected = [(block.path, ", ".join(block.rejected)) for block in self.targets if block.rejected]
        lists = {
            "rejected steps": rejected,
            "linears rounded to nearest": list(self._to_nearest().items()),
            "samples left out, for NaN or Inf in": [
                (str(index), where) for index, where in sorted(self.left_out.items())
            ],
            "weights of the blocks that are not packed": [
                (path, f"{size:,} weights, {reason}") for path, (size, reason) in self.coverage.skipped.items()
            ],
        }
        parts += [f"{title}:\n{labelled(rows)}" for title, rows in lists.items() if rows]
        if self.num_samples:
            parts.append(
                f"Where they held most, a paused sample held {self.bytes_per_sample / 2**20:.2f} MiB on average."
            )
        return "\n\n".join(parts)

    def __str__(self) -> str:
        return "\n\n".join([self._title(), self._sizes(), labelled([*self.facts(), *self.alternatives.items()])])

    def _title(self) -> str:
        data = f"{self.num_samples} samples, {self.num_tokens:,} tokens" if self.num_samples else "no data"
        return f"Quantized with recipe {self.recipe!r}: {data}, {readable_time(self.seconds)}"

    def _sizes(self, *, every_part: bool = False) -> str:
        rows = part_rows(self.coverage, self.plan, every_part=every_part)
        return aligned([HEAD, *(row.cells() for row in rows)])

    def _steps(self) -> tuple[list[list[str]], list[list[str]]]:
        return [block.accepted for block in self.targets], [block.rejected for block in self.targets]

    def _to_nearest(self) -> dict[str, str]:
        """Returns path of every linear that was rounded to nearest although the recipe calibrates → why."""
        return {f"{b.path}.{name}": why for b in self.targets for name, why in b.to_nearest.items()}

    def _widths_outside(self) -> Iterator[str]:
        """Yields what a budget chose for each part outside the blocks: `lm_head: 1 × 4 bits`."""
        parts: dict[str, Counter[str]] = defaultdict(Counter)
        for path, weight in self.coverage.outside_choices.items():
            parts[weight.part][f"{self.plan[path].bits} bits" if path in self.plan else "not packed"] += 1
        for part, counts in parts.items():
            yield f"{part}: {', '.join(f'{counts[width]} × {width}' for width in sorted(counts))}"

    def _errors(self) -> list[float]:
        return [block.error for block in self.targets if math.isfinite(block.error)]

    def _reasons(self) -> str:
        """Returns in one line why weights of the blocks stay as they are, with how many."""
        counts = Counter(reason for _, reason in self.coverage.skipped.values())
        shown = "; ".join(f"{count} × {reason}" for reason, count in counts.most_common(3))
        return f"{len(self.coverage.skipped)} of the blocks' tensors: {shown}" + ("; …" if len(counts) > 3 else "")


def __getattr__(name: str) -> object:
    if name == "BlockSummary":
        warn_of_old_name("BlockSummary", "TargetSummary")
        return TargetSummary
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
