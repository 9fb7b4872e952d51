"""Runs `transformers-qaig plan MODEL`: predicts the loss at each size, and quantizes nothing."""

from __future__ import annotations

import argparse
import json
import math

from transformers import AutoModelForImageTextToText, PreTrainedModel

from ..config import DEFAULT_COST, BitBudget
from ..data.loader import load_inputs
from ..loading.experts import linearize_experts
from ..loading.full_precision import check_finite_weights
from ..nn.experts_layout import find_experts
from ..plan.allocate import SchemeOption, allocate, fused_sets, reachable, schemes_of
from ..plan.build import list_schemes, ratio_to
from ..plan.coverage import Coverage
from ..plan.experts import saved_plan
from ..plan.front import Point, even_budgets, front_of
from ..plan.width_costs import one_bit_less
from ..quantizer.bit_costs.measure import measure_costs
from ..quantizer.saving.file_headers import predict_headers
from ..report.bit_front import plot, table
from ..report.marginal import draw_marginal, part_table
from ..report.page.plan import plan_page
from ..structure import are_tied, find_decoder_blocks, find_input_embeddings, find_lm_head, find_vision_tower
from ..utils.files import write
from ..utils.printable import say
from ..utils.readable import readable_size
from . import dry_run
from .arguments import (
    UsageError,
    bit_budget,
    loading,
    quantization_config,
    require_picture_format,
    require_unquantized,
    set_loudness,
)


def check(options: argparse.Namespace) -> None:
    """Raises `UsageError` for arguments whose errors would otherwise show only after the measurements."""
    if options.points < 2:
        raise UsageError(f"--points must be at least 2, got {options.points}.")
    if options.pick is not None and options.output is None:
        raise UsageError("--pick says which plan --output writes: give --output, too.")
    if isinstance(options.pick, float) and not 0 < options.pick < math.inf:
        raise UsageError(f"--pick must be a positive number of bits, or a size, got {options.pick}.")
    if options.pick is not None and isinstance(options.pick, str) != isinstance(options.budgets[0], str):
        raise UsageError(
            f"--pick {options.pick} and --budgets {_span(options)} must both be bits, or both sizes such as 3GiB or 4x."
        )
    for name in ("plot", "output"):
        file = getattr(options, name)
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise UsageError(f"--{name} must be a file in a folder that is there, got {file}.")
    if options.plot is not None and options.plot.suffix != ".html":
        require_picture_format(options.plot)


def run(options: argparse.Namespace) -> None:
    """Measures, prints the front, and writes the plan and the picture that are asked for.

    Raises:
        UsageError: an argument is wrong; the model was not loaded yet.
        ValueError, OSError: what loading or measuring raises, or a budget out of reach.
    """
    set_loudness(options)
    check(options)
    config = quantization_config(options, budget=bit_budget(options, options.budgets[1]))
    for limit in (options.budgets[0], options.pick):
        if limit is not None:
            bit_budget(options, limit)
    if options.dry_run:
        return dry_run.run(options, config)
    require_unquantized(options)
    model = AutoModelForImageTextToText.from_pretrained(options.model, **loading(options)).eval().requires_grad_(False)
    choices, coverage = list_schemes(model, config)
    coverage.check_minimum(config.calibration.min_coverage)
    predict_headers(coverage, model, choices)
    fused = fused_sets(choices) if options.fuse else []
    budgets = budgets_between(options, coverage, reachable(choices, fused))
    pick = None if options.pick is None else stored_bits(options.pick, coverage)
    if pick is not None and pick < reachable(choices, fused)[0]:
        raise UsageError(f"--pick {options.pick} cannot be met: the smallest plan takes more than that.")
    check_finite_weights(model)
    stacks = find_experts(model)
    every = choices if options.plot is None else _every(model, options)
    linearize_experts(model, stacks, {path: schemes_of(widths)[0] for path, widths in every.items()})
    measured = measure_costs(model, every, load_inputs(model, config), config)
    choices = {path: measured[path] for path in choices}
    found = front_of(choices, coverage, budgets, fused)
    say(table(found))
    if options.plot is not None:
        start = min(max(round(found.points[found.knee].bits), 3), 8)
        layers = one_bit_less(measured, start, _parts(model))
        say(part_table(layers, start))
        if options.plot.suffix == ".html":
            cost = options.cost or DEFAULT_COST
            write(options.plot, plan_page(options.model, found, cost, layers, start))
        else:
            plot(found, options.plot, lambda figure: draw_marginal(figure, layers, start))
        say(f"drawn: {options.plot}")
    if options.output is not None:
        knee = stored_bits(found.points[found.knee].bits, coverage)
        allocation = allocate(choices, knee if pick is None else pick, fused)
        plan = coverage.plan_of(allocation.schemes)
        write(options.output, json.dumps(saved_plan(plan, stacks), indent=1) + "\n")
        point = Point.of(allocation, coverage)
        size = f"{readable_size(8 * point.size)}, {ratio_to(coverage, point.size)}"
        say(f"plan at {point.bits:.2f} bits, {size}: {options.output}, for QAIGConfig(plan=...)")


def _every(model: PreTrainedModel, options: argparse.Namespace) -> dict[str, list[SchemeOption]]:
    """Returns the options of all weights that can be packed, also outside the blocks."""
    return list_schemes(model, quantization_config(options, budget=bit_budget(options, "1x")))[0]


def _parts(model: PreTrainedModel) -> dict[str, str]:
    """Returns path → name of the parts of a model."""
    parts = dict.fromkeys(find_decoder_blocks(model), "language model's blocks")
    parts |= dict.fromkeys(find_vision_tower(model), "vision tower and projector")
    embeddings_name = "embeddings and head" if are_tied(model) else "embeddings"
    for name, found in ((embeddings_name, find_input_embeddings(model)), ("head", find_lm_head(model))):
        parts |= {found.path: name} if found.path else {}
    return parts


def stored_bits(limit: float | str, coverage: Coverage) -> float:
    """Returns the stored bits that the weights which are chosen for may take.

    Half a bit more, so that a plan of just that size is not missed by rounding.

    Args:
        limit: stored bits per weight, or the size of the file or a ratio.
        coverage: has the size of the rest of the model.
    """
    if not isinstance(limit, str):
        return limit * coverage.to_choose + 0.5
    return 8.0 * BitBudget(size=limit).file_bytes(coverage.bfloat16 // 8) - coverage.other_bits + 0.5


def budgets_between(options: argparse.Namespace, coverage: Coverage, limits: tuple[int, int]) -> list[float]:
    """Returns budgets in stored bits, evenly over the span of `--budgets`, within what can be reached.

    Raises:
        UsageError: nothing in the range can be reached.
    """
    low, high = sorted(stored_bits(limit, coverage) - 0.5 for limit in options.budgets)
    least, most = limits
    if high < least or low > most:
        if isinstance(options.budgets[0], str):
            sizes = [(coverage.other_bits + bits) / 8 for bits in limits]
            span = " to ".join(f"{size:,.0f} bytes ({ratio_to(coverage, size)})" for size in sizes)
        else:
            ends = " to ".join(f"{bits / coverage.to_choose:.3f}" for bits in limits)
            span = f"{ends} stored bits per packed weight"
        raise UsageError(f"--budgets {_span(options)} cannot be met: these widths and this group size take {span}.")
    return even_budgets(max(low, least), min(high, most), options.points)


def _span(options: argparse.Namespace) -> str:
    return ":".join(map(str, options.budgets))
