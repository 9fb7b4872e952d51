"""What a quantization run did: printed at its end, and kept on the model as `qaig_report`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from ..plan.coverage import Coverage, Plan


@dataclass
class BlockSummary:
    """
    One block.

    Attributes:
        path: where the block is in the model.
        error: ‖quantized - full precision‖² / ‖full precision‖² of the block's output over all samples, each stream
            with its own inputs; nan if it was not measured, as by a recipe that reads no data.
        kept, undone: choices that lowered the error on held-back samples, and those that did not and were undone.
        importance: sub-block's module → sample → λ [T], for the first samples; empty where λ is uniform.
        searches: groups that were searched for a scale.
        seconds: wall time.
        resumed: taken from the work folder.
        left_out: samples that were left out while the block was quantized, and where NaN or Inf turned up in them.
    """

    path: str
    error: float = float("nan")
    kept: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    importance: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    searches: int = 0
    seconds: float = 0.0
    resumed: bool = False
    left_out: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class QuantizationReport:
    """
    A whole run.

    Attributes:
        recipe: its name.
        coverage: how much of the language model's blocks was packed, and what each part of the model takes.
        plan: weight path → its entry, as it was done.
        num_samples, num_tokens: calibration data: conversations, and real tokens in them, without those left out.
        blocks: one summary per block, and per projector, head or embeddings that were packed, in order.
        seconds: wall time of calibration and packing.
        bytes_per_sample: the most that a paused sample held at a door, on average.
        left_out: index of a sample that was left out → where NaN or Inf turned up in it.
    """

    recipe: str
    coverage: Coverage
    plan: Plan = field(default_factory=dict)
    num_samples: int = 0
    num_tokens: int = 0
    blocks: list[BlockSummary] = field(default_factory=list)
    seconds: float = 0.0
    bytes_per_sample: float = 0.0
    left_out: dict[int, str] = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per packed weight, scales and zero points included."""
        return self.coverage.bits_per_weight

    def __str__(self) -> str:
        data = f"{self.num_samples} samples, {self.num_tokens:,} tokens" if self.num_samples else "no data"
        lines = [
            f"qaig: recipe {self.recipe!r}, {data}, {self.seconds:.1f} s",
            f"  coverage: {self.coverage}",
            *(f"  {line}" for line in self.coverage.unused),
            f"  {self.bits_per_weight:.2f} stored bits per packed weight of the blocks",
            "  size: " + "; ".join(f"{name} {size}" for name, size in self.coverage.size_lines().items()),
        ]
        if self.num_samples:
            errors = ", ".join(
                f"{block.error:.2e}" if math.isfinite(block.error) else "not measured" for block in self.blocks
            )
            for index, where in self.left_out.items():
                lines.append(f"  sample {index} left out: NaN or Inf in {where}")
            lines.append(f"  relative output error per block: {errors}")
            kept, undone = (sum(len(getattr(b, kind)) for b in self.blocks) for kind in ("kept", "undone"))
            if kept or undone:
                lines.append(
                    f"  {kept} choices made" + (f", {undone} undone: no gain on held-back samples" if undone else "")
                )
            lines.append(f"  a paused sample held {self.bytes_per_sample / 2**20:.2f} MiB")
        return "\n".join(lines)
