"""Rounds every block at one width as the recipe would, and keeps the errors of its weights."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from ...config import QAIGConfig
from ...config.recipes import Recipe
from ...equalization.finder import GroupFinder
from ...execution.block_outputs import check_inputs_of, forward
from ...execution.held_back import held_back_every
from ...execution.interceptor import TargetInputs
from ...execution.offload import offloaded
from ...execution.targets import find_targets
from ...formats.scheme import Plan, inside
from ...token_weights.registry import token_weights_of
from ..decisions import dtype_of, in_float32, rounding_errors
from ..paused_samples import PausedSamples
from ..quantize_block import decide
from ..quantizer_settings import settings_of
from .cost_run import CostRun
from .cost_store import CostStore


def errors_of(run: CostRun, plan: Plan, store: CostStore, index: int) -> dict[str, Tensor]:
    """Computes the rounding error of each weight by the recipe: path → [N, K] in the weight's dtype, on the CPU.

    Every block reads full-precision inputs, because the rounding of earlier blocks is not decided yet.

    Args:
        run: model, data and settings.
        plan: weight path → scheme.
        store: keeps the errors of a block.
        index: of this width among the options.
    """
    recipe, errors = _ranking(run.config.recipe), {}
    data = run.data if recipe.calibrates else replace(run.data, samples=[], answer_masks=[])
    targets, _ = find_targets(run.model, run.structure, [], data.samples, run.device)
    finder = GroupFinder(run.structure.shared, run.config.seed)
    with (
        offloaded(run.model, [target.module for target in targets], run.device) as offload,
        PausedSamples(
            run.model, run.structure, targets, data, held_back_every(recipe), None, quantizes=False
        ) as paused,
    ):
        for number, target in enumerate(targets):
            path, block, schemes, inputs = target.path, target.module, inside(plan, target.path), paused.at(number)
            check_inputs_of(path, inputs)
            with offload.onload(block):
                found = store.errors(index, path, block, list(schemes)) if schemes else {}
                if found is None:
                    found = _errors_of_block(block, path, schemes, inputs, run.config, recipe, finder)
                    store.save_errors(index, path, found)
                else:
                    paused.drop_left_out()
                for sample in list(inputs.full) if target is not targets[-1] else ():
                    paused.resume(sample, [forward(block, inputs.full[sample], on_trial=False)])
            errors.update({f"{path}.{name}": delta for name, delta in found.items()})
            run.bar.update()
    return {path: errors[path] for path in plan}


def _ranking(recipe: Recipe) -> Recipe:
    """Returns the recipe that ranks widths as this one would: learning every width would take hours."""
    return replace(recipe, rounding="gptq") if recipe.rounding == "learned" else recipe


def _errors_of_block(
    block: nn.Module,
    path: str,
    schemes: Plan,
    inputs: TargetInputs,
    config: QAIGConfig,
    recipe: Recipe,
    finder: GroupFinder,
) -> dict[str, Tensor]:
    token_weights = token_weights_of(recipe, config.seed)  # for each block, as if it stood alone
    decisions, _ = decide(block, path, schemes, inputs, settings_of(config, recipe, finder, token_weights))
    dtype = dtype_of(block, schemes)
    deltas = rounding_errors(in_float32(block), decisions, dtype)
    return {name: delta.to("cpu", dtype).contiguous() for name, delta in deltas.items()}
