"""Runs `transformers-qaig plan MODEL`: predicts the loss at each size, and quantizes nothing."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math

from transformers import AutoModelForImageTextToText, PreTrainedModel

from ..calibration.bit_costs.measure import measure_costs
from ..config import DEFAULT_COST, QAIGConfig
from ..data.calibration_data import CalibrationData
from ..data.loader import load_inputs
from ..formats.scheme import plan_to_dict
from ..loading.experts import linearize_experts
from ..nn.experts_layout import find_experts
from ..plan.allocate import SchemeOption, allocate, fused_sets, reachable
from ..plan.build import list_schemes
from ..plan.coverage import Coverage
from ..plan.experts import compact
from ..plan.front import even_budgets, front_of
from ..plan.width_costs import one_bit_less
from ..quantizer.saving.file_headers import predict_headers
from ..report.bit_front import plot, table
from ..report.marginal import draw_marginal, part_table
from ..report.page.plan import plan_page
from ..structure import find_decoder_blocks, find_input_embeddings, find_lm_head, find_vision_tower
from ..utils.files import write
from ..utils.finite import check_weights
from . import dry_run
from .arguments import UsageError, bit_budget, loading, quantization_config, require_unquantized, set_loudness
from .part_costs import measure_part_costs


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
    is_picture = options.plot is not None and options.plot.suffix != ".html"
    if is_picture and importlib.util.find_spec("matplotlib") is None:
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
    if options.dry_run:
        return dry_run.run(options, config)
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
    stacks = find_experts(model)
    linearize_experts(model, stacks, {path: widths[0].scheme for path, widths in choices.items()})
    data = load_inputs(model, config)
    choices = measure_costs(model, choices, data, config)
    found = front_of(choices, coverage, budgets, fused)
    print(table(found))
    if options.plot is not None:
        start = min(max(round(found.points[found.knee].bits), 3), 8)
        outside = _outside(model, options, config, start, data)
        layers = one_bit_less({**choices, **outside}, start, _parts(model))
        print(part_table(layers, start))
        if options.plot.suffix == ".html":
            cost = options.cost or DEFAULT_COST
            write(options.plot, plan_page(options.model, found, cost, layers, start))
        else:
            plot(found, options.plot, lambda figure: draw_marginal(figure, layers, start))
        print(f"drawn: {options.plot}")
    if options.output is not None:
        bits = found.points[found.knee].bits if options.pick is None else options.pick
        allocation = allocate(choices, bits * coverage.packed + 0.5, fused)
        write(options.output, json.dumps(plan_to_dict(compact(allocation.schemes, stacks)), indent=1) + "\n")
        print(f"plan at {allocation.size / coverage.packed:.2f} bits: {options.output}, for QAIGConfig(plan=...)")


def _outside(
    model: PreTrainedModel,
    options: argparse.Namespace,
    config: QAIGConfig,
    bits: int,
    data: CalibrationData,
) -> dict[str, list[SchemeOption]]:
    """Returns the options of weights outside the blocks, measured at `bits` and one bit less."""
    budget = config.budget
    if budget is None or budget.cost != DEFAULT_COST:
        return {}  # in another unit
    everything = quantization_config(
        options, budget=bit_budget(options, budget.bits or 4.0), vision_bits=8, lm_head_bits=8, embedding_bits=8
    )
    outside = list_schemes(model, everything)[1].outside_plan
    return measure_part_costs(model, outside, (bits - 1, bits), data, config)


def _parts(model: PreTrainedModel) -> dict[str, str]:
    """Returns path → name of the parts of a model."""
    parts = dict.fromkeys(find_decoder_blocks(model), "language model's blocks")
    parts |= dict.fromkeys(find_vision_tower(model), "vision tower and projector")
    for name, found in (("embeddings", find_input_embeddings(model)), ("head", find_lm_head(model))):
        parts |= {found.path: name} if found.path else {}
    return parts


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
    return even_budgets(max(low, least) * coverage.packed, min(high, most) * coverage.packed, points)
