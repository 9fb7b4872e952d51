"""Measures what each way to store each weight costs the answers, before anything is quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from ...config import QAIGConfig
from ...data.calibration_data import CalibrationData
from ...distributed.joining import device_of
from ...execution.few_rows import independent_of_thread_count
from ...execution.sequential_onload import sequential_onload
from ...execution.torch_state import default_torch_state
from ...plan.allocate import SchemeOption
from ...structure import ModelStructure
from ...utils.logging import tqdm
from .answer_costs import costs_of
from .cost_run import CostRun
from .cost_store import CostStore
from .width_errors import errors_of


@default_torch_state()
def measure_costs(
    model: PreTrainedModel, options: Mapping[str, Sequence[SchemeOption]], data: CalibrationData, config: QAIGConfig
) -> dict[str, list[SchemeOption]]:
    """Returns the options with their costs, in nats per answer token (`"output_error"`: relative squared output error).

    Every width is rounded as the recipe would: searched block by block on full-precision inputs, all linears of the
    block at that width. Then the samples run through the model with those errors, as the cost asks for. The model is
    left as it was. With a `work_dir` the errors of finished blocks, and the costs of finished widths, are kept there;
    another cost finds the same errors.

    Args:
        model: in full precision, in evaluation mode, on the CPU.
        options: from [`list_schemes`].
        data: samples and their answers.
        config: cost, recipe, seed, work folder, calibration device.

    Raises:
        ValueError: no sample has an answer's token; the work folder belongs to another run, is in use by one, or
            cannot be written; or NaN or Inf turned up in too many samples.
    """
    if not any(bool(answer.any()) for answer in data.answer_masks):
        raise ValueError("no calibration sample has an answer: there is nothing whose loss could be predicted.")
    budget = config.budget
    assert budget is not None
    structure, device = ModelStructure.of(model), device_of(data.ranks, config.calibration.device)
    blocks = list(structure.blocks.values())
    costs: dict[str, list[float]] = {path: [] for path in options}
    count, steps = max(len(choices) for choices in options.values()), len(blocks) + len(data.samples)
    with (
        CostStore(options, data, config, model) as store,
        independent_of_thread_count(structure),
        tqdm(total=count * steps, desc=f"Costs ({budget.cost})", unit="step") as bar,
    ):
        run = CostRun(model, structure, data, config, device, bar)
        for index in range(count):
            # A weight with fewer options is stored as in its last one meanwhile.
            plan = {path: choices[min(index, len(choices) - 1)].scheme for path, choices in options.items()}
            found = store.costs(index, budget.cost, list(plan))
            if found is not None:
                bar.update(steps)
            else:
                errors = errors_of(run, plan, store, index)
                with sequential_onload(model, blocks, device):
                    found = costs_of(run, errors, budget.cost)
                store.save_costs(index, budget.cost, found)
            for path, choices in options.items():
                if index < len(choices):
                    costs[path].append(found[path])
    return {
        path: [replace(option, cost=cost) for option, cost in zip(choices, costs[path])]
        for path, choices in options.items()
    }
