"""Predicts what rounding costs outside the language model's blocks: in the tower, projector, head and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..calibration.bit_costs.answer_costs import costs_of
from ..calibration.bit_costs.cost_run import CostRun
from ..config import QAIGConfig
from ..data.calibration_data import CalibrationData
from ..execution.few_rows import independent_of_thread_count
from ..execution.sequential_onload import sequential_onload
from ..execution.torch_state import default_torch_state
from ..formats.scheme import Plan, WeightScheme
from ..plan.allocate import SchemeOption
from ..rounding.quant_grid import grid_arguments, minmax_grid
from ..structure import ModelStructure
from ..utils.logging import tqdm

MOST_SAMPLES = 32
ROWS = 4096
"""Rows of a weight that are rounded at once: a head may have 150,000."""


@default_torch_state()
def measure_part_costs(
    model: PreTrainedModel,
    outside: Plan,
    widths: Sequence[int],
    data: CalibrationData,
    config: QAIGConfig,
) -> dict[str, list[SchemeOption]]:
    """Returns options for weights outside the blocks, with their costs by Fisher, each rounded to nearest.

    Args:
        model: in full precision, in evaluation mode, on the CPU.
        outside: weight path → scheme, of linears and embeddings; its bits do not count.
        widths: to measure.
        data: of which the first `MOST_SAMPLES` samples are read.
        config: seed and device.
    """
    data = replace(data, samples=data.samples[:MOST_SAMPLES], answer_masks=data.answer_masks[:MOST_SAMPLES])
    device = config.calibration.device or torch.accelerator.current_accelerator(check_available=True)
    options: dict[str, list[SchemeOption]] = {path: [] for path in outside}
    structure = ModelStructure.of(model)
    with (
        independent_of_thread_count(structure),
        sequential_onload(model, list(structure.blocks.values()), device),
        tqdm(total=len(widths) * len(data.samples), desc="Costs outside the blocks", unit="sample") as bar,
    ):
        run = CostRun(model, structure, data, config, device, bar)
        for bits in widths:
            plan = {path: replace(scheme, bits=bits) for path, scheme in outside.items()}
            errors = {path: _error(model.get_submodule(path).get_parameter("weight"), s) for path, s in plan.items()}
            costs = costs_of(run, errors, "fisher")
            for path, scheme in plan.items():
                weight = model.get_submodule(path).get_parameter("weight")
                rows, columns = weight.shape
                size = scheme.stored_bits(rows, columns, 8 * weight.element_size())
                options[path].append(SchemeOption(scheme, size, costs[path]))
    return options


@torch.no_grad()
def _error(weight: Tensor, scheme: WeightScheme) -> Tensor:
    """Returns what rounding to nearest adds to a weight `[N, K]`, in its dtype, on the CPU."""
    pieces = []
    for rows in weight.detach().split(ROWS):
        values = rows.float()
        grid = minmax_grid(values, **grid_arguments(scheme, weight.dtype, False))
        pieces.append((grid.quantize(values) - values).to("cpu", weight.dtype))
    return torch.cat(pieces)
