"""Rounds every target at one width as the recipe would, and keeps the errors of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...calibration.decisions import dtype_of, in_float32, rounding_errors
from ...calibration.paused_samples import PausedSamples
from ...calibration.quantizer_settings import settings_of
from ...calibration.target_quantizer import decide
from ...config import QAIGConfig
from ...config.recipes import Recipe
from ...equalization.finder import GroupFinder
from ...execution.held_back import held_back_every
from ...execution.layer_inputs import TargetInputs, forward
from ...execution.offload import offloaded, onload
from ...execution.targets import RowChunk, Target, row_chunks_of
from ...formats.scheme import Plan
from ...rounding.packed_layers import embedding_errors
from .cost_run import CostRun
from .cost_store import CostStore


def errors_of(run: CostRun, plan: Plan, store: CostStore, index: int) -> dict[str, Tensor]:
    """Computes the rounding error of each weight by the recipe: path → [N, K] in the weight's dtype, on the CPU.

    Every target reads full-precision inputs, because the rounding of earlier ones is not decided yet.

    Args:
        run: model, data and settings.
        plan: weight path → scheme.
        store: keeps the errors of a target.
        index: of this width among the options.
    """
    recipe, errors, targets = ranking(run.config.recipe), dict[str, Tensor](), run.targets
    data = run.data if recipe.calibrates else replace(run.data, samples=[], answer_masks=[])
    rounding = _Rounding(plan, store, index, run.config, recipe, GroupFinder(run.structure.shared, run.config.seed))
    with (
        offloaded(run.model, [target.module for target in targets], run.device) as offload,
        PausedSamples(
            run.model, run.structure, targets, data, held_back_every(recipe), None, quantizes=False
        ) as paused,
    ):
        for number, target in enumerate(targets):
            inputs = paused.at(number)
            with offload.onload(target.module):
                errors |= rounding.errors(target, inputs, paused.drop_left_out)
                for sample in list(inputs.full) if target is not targets[-1] else ():
                    paused.resume(sample, [forward(target.module, inputs.full[sample], on_trial=False)])
            run.bar.update()
    for target in run.uncalibrated:
        with onload(target.module, run.device):
            errors |= rounding.errors(target, TargetInputs({}, {}, [], ranks=data.ranks))
        run.bar.update()
    return {path: errors[path] for path in plan}


def ranking(recipe: Recipe) -> Recipe:
    """Returns the recipe that ranks widths as this one would: learning every width would take hours."""
    return replace(recipe, rounding="gptq") if recipe.rounding == "learned" else recipe


@dataclass(frozen=True)
class _Rounding:
    """Rounds targets at one width.

    Attributes:
        plan: weight path → scheme.
        store: keeps the errors, except those of embeddings, which take no time.
        index: of this width among the options.
        config: of the run.
        recipe: by which widths are ranked.
        finder: finds a block's groups.
    """

    plan: Plan
    store: CostStore
    index: int
    config: QAIGConfig
    recipe: Recipe
    finder: GroupFinder

    def errors(
        self, target: Target, inputs: TargetInputs, on_read: Callable[[], None] = lambda: None
    ) -> dict[str, Tensor]:
        """Returns the errors of a target's weights, by path in the model.

        Args:
            target: on the device; a single linear is rounded some rows at a time.
            inputs: with which the samples wait there.
            on_read: called when errors come from the store, with samples to leave out.
        """
        if isinstance(target.module, nn.Embedding):
            return {target.path: embedding_errors(target.module, self.plan[target.path], self.recipe)}
        found = [self._errors_of_chunk(chunk, inputs, on_read) for chunk in row_chunks_of(target, self.plan)]
        if isinstance(target.module, nn.Linear):
            return {target.path: torch.cat([rows["linear"] for rows in found])}
        return {f"{target.path}.{name}": delta for name, delta in found[0].items()}

    def _errors_of_chunk(self, chunk: RowChunk, inputs: TargetInputs, on_read: Callable[[], None]) -> dict[str, Tensor]:
        block, schemes = chunk.module, chunk.schemes
        if not schemes:
            return {}
        found = self.store.errors(self.index, chunk.path, block, list(schemes))
        if found is not None:
            on_read()
            return found
        settings = settings_of(self.config, self.recipe, self.finder)  # for each block, as if it stood alone
        decisions, _ = decide(block, chunk.path, schemes, inputs, settings)
        dtype = dtype_of(block, schemes)
        deltas = rounding_errors(in_float32(block), decisions, dtype)
        found = {name: delta.to("cpu", dtype).contiguous() for name, delta in deltas.items()}
        self.store.save_errors(self.index, chunk.path, found)
        return found
