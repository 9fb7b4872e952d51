"""Runs `transformers-qaig plan MODEL`: predicts the loss at each size, and quantizes nothing."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math

import numpy as np
from transformers import AutoModelForImageTextToText

from ..calibration.bit_costs import measure_costs
from ..data.loader import load_inputs
from ..execution.exclusions import Exclusions
from ..loading.experts import linearize_experts
from ..plan.allocate import Options, allocate, fused_sets, knee, reachable
from ..plan.build import list_schemes
from ..plan.coverage import Coverage
from ..plan.experts import compact
from ..report.bit_front import Front, Point, plot, table
from ..saving.file_headers import predict_headers
from ..scheme import plan_to_dict
from ..utils.files import write
from ..utils.finite import check_weights
from .arguments import UsageError, bit_budget, loading, quantization_config, require_unquantized, set_loudness


def check(options: argparse.Namespace) -> None:
    """Raises `UsageError` for arguments whose errors would otherwise show only after the measurements."""
    if options.points < 2:
        raise UsageError(f"--points must be at least 2, got {options.points}.")
    if options.pick is not None and options.output is None:
        raise UsageError("--pick says which plan --output writes: give --output, too.")
    if options.pick is not None and not 0 < options.pick < math.inf:
        raise UsageError(f"--pick must be a positive number of bits, got {options.pick}.")
    for name in ("plot", "output"):
        file = getattr(options, name)
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise UsageError(f"--{name} must be a file in a folder that is there, got {file}.")
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install matplotlib, or leave it out.")


def run(options: argparse.Namespace) -> None:
    """Measures, prints the front, and writes the plan and the picture that are asked for.

    Raises:
        UsageError: an argument is wrong; the model was not loaded yet.
        ValueError, OSError: what loading or measuring raises, or a budget out of reach.
    """
    set_loudness(options)
    check(options)
    low, high = options.budgets
    config = quantization_config(options, budget=bit_budget(options, high))
    require_unquantized(options)
    model = AutoModelForImageTextToText.from_pretrained(options.model, **loading(options)).eval().requires_grad_(False)
    choices, coverage = list_schemes(model, config)
    coverage.require(config.calibration.min_coverage)
    predict_headers(coverage, model, choices)
    fused = fused_sets(choices) if options.fuse else []
    budgets = budgets_between(low, high, options.points, coverage, reachable(choices, fused))
    if options.pick is not None and options.pick * coverage.packed + 0.5 < reachable(choices, fused)[0]:
        raise UsageError(f"--pick {options.pick} cannot be met: the smallest plan takes more bits than that.")
    check_weights(model)
    linearize_experts(model, {path: widths[0].scheme for path, widths in choices.items()})
    exclusions = Exclusions()
    samples, answers = load_inputs(model, config, exclusions=exclusions)
    choices = measure_costs(model, choices, samples, answers, config, exclusions)
    found = front(choices, coverage, budgets, fused)
    print(table(found))
    if options.plot is not None:
        plot(found, options.plot)
        print(f"drawn: {options.plot}")
    if options.output is not None:
        bits = found.points[found.knee].bits if options.pick is None else options.pick
        allocation = allocate(choices, bits * coverage.packed + 0.5, fused)
        write(options.output, json.dumps(plan_to_dict(compact(allocation.schemes, model)), indent=1) + "\n")
        print(f"plan at {allocation.size / coverage.packed:.2f} bits: {options.output}, for QAIGConfig(plan=...)")


def budgets_between(low: float, high: float, points: int, coverage: Coverage, limits: tuple[int, int]) -> list[float]:
    """Returns budgets in stored bits, evenly from `low` to `high` stored bits per weight, within what can be reached.

    Raises:
        UsageError: nothing in the range can be reached.
    """
    least, most = (bits / coverage.packed for bits in limits)
    if high < least or low > most:
        raise UsageError(
            f"--budgets {low}:{high} cannot be met: these widths and this group size take {least:.3f} to {most:.3f} "
            "stored bits per packed weight."
        )
    # Half a bit more in all, so that the smallest choice itself is not missed by rounding.
    return [float(b) * coverage.packed + 0.5 for b in np.linspace(max(low, least), min(high, most), points)]


def front(options: Options, coverage: Coverage, budgets: list[float], fused: list[list[str]]) -> Front:
    """Returns the best plan within each budget, and the uniform plans to compare them with."""
    points: list[Point] = []
    for budget in budgets:
        allocation = allocate(options, budget, fused)
        if not points or allocation.size / coverage.packed > points[-1].bits:
            points.append(Point.of(allocation, coverage))
    widths = sorted({option.scheme.bits for choices in options.values() for option in choices})
    uniform = []
    for width in widths:
        same = {
            path: [o for o in choices if o.scheme.bits == width] or choices[-1:] for path, choices in options.items()
        }
        uniform.append(Point.of(allocate(same, reachable(same)[1]), coverage))
    return Front(points, knee([p.bits for p in points], [p.loss for p in points]), uniform)
