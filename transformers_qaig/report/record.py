"""Writes what a run did as JSON, the data behind the report's page: `docs/reference/report-file.md` has the schema."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import QAIGConfig
from ..data.views import MOST_TOKENS, SampleView, SampleViews
from ..formats.scheme import Plan
from ..plan.front import Point
from ..plan.width_costs import WidthCosts, split_layer
from ..utils.readable import readable_time
from ..utils.version import __version__
from .sizes import WHOLE, part_rows
from .summary import QuantizationReport, TargetSummary

KIND, VERSION = "transformers_qaig.report", 1
MOST_LISTED = 40
"""Rejected steps, reasons and the like that are listed for one target; more are counted."""

Record = dict[str, Any]


def record_of(report: QuantizationReport, config: QAIGConfig, *, with_data: bool = False) -> Record:
    """Returns the report as JSON can hold it.

    Args:
        report: of a run that is over, or has finished some targets.
        config: of the run.
        with_data: also the first calibration samples, with their words and pictures, and their token weights.
    """
    record: Record = {
        "kind": KIND,
        "version": VERSION,
        "written_by": f"transformers_qaig {__version__}",
        "model": report.model_name,
        "recipe": report.recipe,
        "targets_in_all": max(report.num_targets, len(report.targets)),
        "samples": report.num_samples,
        "tokens": report.num_tokens,
        "lengths": [] if report.views is None else list(report.views.lengths),
        "left_out": {str(index): where for index, where in report.left_out.items()},
        "seconds": report.seconds,
        "times": {**report.times, **_times_of_targets(report.targets)},
        "bytes_per_sample": report.bytes_per_sample,
        "bits_per_weight": report.bits_per_weight,
        "facts": [list(fact) for fact in report.facts()],
        "config": {key: value for key, value in config.to_dict().items() if key != "plan"},
        "repeat": repr(config),
        "sizes": [
            {"name": row.name, "bits": list(row.bits), "before": row.size.full / 8, "after": row.size.saved / 8}
            for row in part_rows(report.coverage, report.plan, every_part=True)
            if row.name != WHOLE
        ],
        "layers": layers_of(report.plan),
        "targets": [_target(target) for target in report.targets],
        "prices": None if report.width_costs is None else prices_of(report.width_costs),
        "views": [],
        "token_weights": {},
    }
    if with_data and report.views is not None:
        record["views"] = [_view(view) for view in report.views.views]
        record["token_weights"] = _token_weights(report.targets, report.views)
    return record


def as_text(record: Record) -> str:
    """Returns the record as the text of a file: JSON without NaN, which other readers refuse."""
    return json.dumps(_finite(record), separators=(",", ":"), allow_nan=False) + "\n"


def layers_of(plan: Plan) -> list[Record]:
    """Counts how many weights of each layer have which width: experts of one stack are one layer."""
    widths: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for path, scheme in plan.items():
        widths[split_layer(path)][scheme.bits] += 1
    return [
        {"block": block, "name": name, "widths": {str(bits): counts[bits] for bits in sorted(counts)}}
        for (block, name), counts in widths.items()
    ]


def prices_of(costs: WidthCosts) -> Record:
    """Returns what widths cost as JSON can hold it."""
    front = costs.front
    return {
        "cost": costs.cost,
        "layers": [
            {"block": block, "name": name, "options": [[p.bits, p.size, p.loss] for p in options]}
            for (block, name), options in costs.layers.items()
        ],
        "front": [] if front is None else [_point(point) for point in front.points],
        "knee": 0 if front is None else front.knee,
        "uniform": [] if front is None else [_point(point) for point in front.uniform],
        "chosen": None if costs.chosen is None else _point(costs.chosen),
    }


def _point(point: Point) -> list[float]:
    return [point.bits, point.size, point.loss]


def _target(target: TargetSummary) -> Record:
    return {
        "path": target.path,
        **{name: getattr(target, name) for name in ("error", "entering", "pictures", "text", "seconds")},
        "memory": target.memory,
        "device_memory": target.device_memory,
        "resumed": target.resumed,
        "accepted": len(target.accepted),
        "rejected": len(target.rejected),
        "rejected_steps": target.rejected[:MOST_LISTED],
        "to_nearest": dict(list(target.to_nearest.items())[:MOST_LISTED]),
        "averaged": target.averaged,
        "damping": target.damping,
    }


def _times_of_targets(targets: Iterable[TargetSummary]) -> dict[str, float]:
    """Adds up the seconds of all targets of one list of blocks, and of each other target."""
    seconds: dict[str, float] = defaultdict(float)
    for target in targets:
        block, name = split_layer(target.path)
        where = f"{block.rpartition('.')[0]}.*" if not name else target.path
        seconds[f"calibration of {where}"] += target.seconds
    return seconds


def _view(view: SampleView) -> Record:
    return {
        "index": view.index,
        "tokens": view.tokens,
        "words": list(view.words),
        "picture_tokens": [position for position, is_picture in enumerate(view.is_picture) if is_picture],
        "pictures": list(view.pictures),
        "grid": None if view.grid is None else list(view.grid),
    }


def _token_weights(targets: Sequence[TargetSummary], views: SampleViews) -> dict[str, dict[str, Record]]:
    """Returns λ by target and view: the mean over the target's groups, as bytes from 0 to the largest."""
    found: dict[str, dict[str, Record]] = {}
    for target in targets:
        by_sample: dict[int, list[Tensor]] = defaultdict(list)
        for weights in target.token_weights.values():
            for sample, each in weights.items():
                by_sample[sample].append(each.detach().float().cpu().flatten()[:MOST_TOKENS])
        for sample, rows in by_sample.items():
            if sample >= len(views.views):
                continue
            view = views.views[sample]
            rows = [row for row in rows if len(row) == len(view.words)]
            if rows:
                found.setdefault(target.path, {})[str(sample)] = _coded(torch.stack(rows).mean(0))
    return found


def _coded(weights: Tensor) -> Record:
    most = float(weights.max()) if len(weights) else 0.0
    if not (math.isfinite(most) and most > 0):
        return {"most": 0.0, "codes": ""}
    codes = (weights.clamp(min=0) / most * 255).round().to(torch.uint8)
    return {"most": most, "codes": base64.b64encode(bytes(codes.tolist())).decode()}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def progress_line(record: Mapping[str, Any]) -> str:
    """Returns how far a run is, in words."""
    done, total = len(record["targets"]), record["targets_in_all"]
    state = "finished" if done >= total else f"{done} of {total} targets done"
    return f"{state}, {readable_time(record['seconds'] or 0.0)}"
