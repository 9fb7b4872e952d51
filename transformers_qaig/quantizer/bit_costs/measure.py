"""Measures what each way to store each weight costs the answers, before anything is quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from ...config import QAIGConfig
from ...config.budget import NEAREST
from ...data.calibration_data import CalibrationData
from ...distributed.joining import device_of
from ...execution.cpu_products import cpu_products
from ...execution.offload import sequential_onload
from ...execution.out_of_memory import out_of_memory_explained
from ...execution.targets import find_targets
from ...execution.torch_state import default_torch_state
from ...formats.scheme import Plan, WeightScheme
from ...nn.experts_layout import split_path
from ...plan.allocate import SchemeOption, schemes_of
from ...structure import ModelStructure, find_vision_tower
from ...utils.logging import get_logger, tqdm
from .answer_costs import costs_of
from .cost_run import CostRun
from .cost_store import CostStore
from .estimators import Errors
from .nearest_errors import NearestErrors
from .width_errors import errors_of, ranking

logger = get_logger(__name__)
GRADIENTS = ("fisher", NEAREST, "integrated_gradients")
"""Costs that see only what gradients reach."""
MEASURED = 4
"""The width at which `"fisher_rtn"` measures."""


@default_torch_state()
def measure_costs(
    model: PreTrainedModel, options: Mapping[str, Sequence[SchemeOption]], data: CalibrationData, config: QAIGConfig
) -> dict[str, list[SchemeOption]]:
    """Returns the options with their costs, in nats per answer token (`"output_error"`: relative squared output error).

    Every width is rounded as the recipe would: searched target by target on full-precision inputs, all linears of the
    target at that width. Then the samples run through the model with those errors, as the cost asks for.
    `"fisher_rtn"` rounds to nearest, at one width: four bits or the nearest candidate. The error of another width is
    taken to grow with its step. A weight that stays as it is costs nothing. The model is left as it was. With a
    `work_dir` the errors of finished targets, the costs of finished widths, and those of the first samples at another
    one are kept there; another cost finds the same errors.

    Args:
        model: in full precision, in evaluation mode, on the CPU.
        options: from [`list_schemes`].
        data: samples and their answers.
        config: cost, recipe, seed, work folder, calibration device.

    Raises:
        ValueError: no sample has an answer's token, or none that has a picture; the work folder belongs to another run,
            is in use by one, or cannot be written; or NaN or Inf turned up in too many samples.
    """
    if not any(bool(answer.any()) for answer in data.answer_masks):
        raise ValueError("no calibration sample has an answer: there is nothing whose loss could be predicted.")
    budget = config.budget
    assert budget is not None
    structure, device = ModelStructure.of(model), device_of(data.ranks, config.calibration.device)
    schemes = {path: schemes_of(choices) for path, choices in options.items()}
    plans = _plans(schemes, budget.cost)
    found: list[dict[str, float]] = []
    with (
        out_of_memory_explained("while costs of widths were measured", device, len(data.samples), lambda: 0),
        CostStore(options, data, config, model) as store,
        cpu_products(structure),
    ):
        outside = [path for path in options if not structure.is_in_block(path)]
        samples = data.samples if ranking(config.recipe).calibrates else []
        targets, uncalibrated = find_targets(model, structure, outside, samples, device)
        steps = len(targets) + len(uncalibrated) + len(data.samples)
        with tqdm(total=len(plans) * steps, desc=f"Costs ({budget.cost})", unit="step") as bar:
            run = CostRun(model, structure, data, config, device, targets, uncalibrated, bar)
            for index, plan in enumerate(plans):
                costs = store.costs(index, budget.cost, list(plan))
                if costs is not None:
                    bar.update(steps)
                else:
                    costs = _costs_of_plan(run, plan, store, index)
                    store.save_costs(index, budget.cost, costs)
                found.append(costs)
    return {path: _with_costs(path, choices, plans, found) for path, choices in options.items()}


def _plans(schemes: Mapping[str, Sequence[WeightScheme]], cost: str) -> list[Plan]:
    """Returns the plans to measure: one for each width, or a single one whose costs tell the others'."""
    if cost == NEAREST:
        return [{path: min(choices, key=lambda one: abs(one.bits - MEASURED)) for path, choices in schemes.items()}]
    # A weight with fewer options is stored as in its last one meanwhile.
    count = max(map(len, schemes.values()))
    return [
        {path: choices[min(index, len(choices) - 1)] for path, choices in schemes.items()} for index in range(count)
    ]


def _costs_of_plan(run: CostRun, plan: Plan, store: CostStore, index: int) -> dict[str, float]:
    """Measures what each weight of a plan costs; a tied head's cost counts for its embeddings."""
    assert run.config.budget is not None
    tied, head = run.structure.embeddings.path if run.structure.is_tied else "", run.structure.head.path
    errors: Errors
    if run.config.budget.cost == NEAREST:
        run.bar.update(len(run.targets) + len(run.uncalibrated))
        errors = NearestErrors(run.model, run.structure, {**plan, head: plan[tied]} if tied in plan else plan)
    else:
        found = errors_of(run, plan, store, index)
        errors = {**found, head: found[tied]} if tied in found else found
    with sequential_onload(run.model, run.blocks, run.device):
        costs = costs_of(run, errors, run.config.budget.cost, store, index)
    if tied in errors:
        costs[tied] += costs.pop(head)
    _check_reached(run.model, costs)
    if run.config.budget.cost not in GRADIENTS:
        return costs
    known = [path for path, cost in costs.items() if cost or split_path(path) is None]
    return _with_unreached(
        costs, {path: run.model.get_submodule(path).get_parameter("weight").numel() for path in known}
    )


def _with_unreached(costs: dict[str, float], elements: Mapping[str, int]) -> dict[str, float]:
    """Returns the costs, with those of linears at zero raised to the highest cost of an element.

    No gradient of the answers reaches them, such as one that chooses what is attended: what they cost is not known.

    Args:
        costs: weight path → cost.
        elements: weight path → elements, of all but experts without cost, to which no token may have been routed.
    """
    unreached = [path for path in elements if not costs[path]]
    highest = max((costs[path] / count for path, count in elements.items()), default=0.0)
    if not unreached or not highest:
        return costs
    logger.warning(
        "What rounding %d weights costs the answers is not known, as no gradient reaches them: %s%s. They count as the "
        "most sensitive.", len(unreached), ", ".join(unreached[:3]), ", ..." if len(unreached) > 3 else "",
    )  # fmt: skip
    return {**costs, **{path: highest * elements[path] for path in unreached}}


def _with_costs(
    path: str, choices: Sequence[SchemeOption], plans: Sequence[Plan], found: Sequence[Mapping[str, float]]
) -> list[SchemeOption]:
    """Returns a weight's options with their costs, in order."""
    costs = {plan[path].bits: each[path] for plan, each in zip(plans, found)}
    return [
        option if option.scheme is None else replace(option, cost=_cost_at(option.scheme.bits, costs))
        for option in choices
    ]


def _cost_at(bits: int, costs: Mapping[int, float]) -> float:
    """Returns the cost of a width: as measured, or from another one by the square of the step."""
    if bits in costs:
        return costs[bits]
    ((measured, cost),) = costs.items()
    return cost * ((2**measured - 1) / (2**bits - 1)) ** 2


def _check_reached(model: nn.Module, costs: Mapping[str, float]) -> None:
    """Raises `ValueError` if no answer depends on the tower: its widths could not be told apart."""
    try:
        parts = find_vision_tower(model)
    except ValueError:
        return
    seen = [cost for path, cost in costs.items() if any(f"{path}.".startswith(f"{part}.") for part in parts)]
    if seen and not any(seen):
        raise ValueError(
            "no calibration sample with an answer has a picture, so what rounding the vision tower costs is not known. "
            "Give samples with pictures, say the tower's width with `vision_bits`, or leave it out with "
            "`modules_to_not_convert`."
        )
