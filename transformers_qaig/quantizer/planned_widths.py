"""`PlannedWidths`: the plan of a run, which a budget leaves open until the costs of widths are measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..config import QAIGConfig
from ..config.budget import DEFAULT_BUDGET
from ..data.calibration_data import CalibrationData
from ..formats.scheme import Plan
from ..loading.skeleton import likely_plan, packed_skeleton
from ..loading.unused_tensors import UnusedTensor, find_unused, report_unused
from ..plan.allocate import (
    Allocation,
    SchemeOption,
    allocate,
    describe,
    fused_sets,
    only_choice,
    option_at,
    reachable,
    schemes_of,
)
from ..plan.build import budget_in_bits, list_schemes, make_plan
from ..plan.coverage import Coverage
from ..plan.width_costs import WidthCosts, width_costs
from ..utils.errors import SettingError
from ..utils.logging import get_logger
from .saving.file_headers import count_headers, predict_headers
from .saving.state_dict import checkpoint_tensors

logger = get_logger(__name__)


class PlannedWidths:
    """Which weight gets which scheme: the settings say it, or a budget chooses.

    Args:
        config: of the run.

    Attributes:
        plan: weight path to scheme; a likely one while a budget has not chosen.
        coverage: of that plan.
        options: what a budget chooses from; empty where nothing is left to choose.
        unused: stored tensors that the model has no place for, to be saved again.
        costs: what each width costs the answers; None where that was not measured.
    """

    def __init__(self, config: QAIGConfig):
        self.config = config
        self.plan: Plan = {}
        self.coverage = Coverage()
        self.options: dict[str, list[SchemeOption]] = {}
        self.unused: list[UnusedTensor] = []
        self.costs: WidthCosts | None = None
        self._budget = 0.0
        self._unpacked: PreTrainedModel | None = None
        self._files: Sequence[str] = ()

    def make(self, model: PreTrainedModel, checkpoint_files: Sequence[str]) -> None:
        """Makes the plan, or lists the options that a budget chooses from.

        Raises:
            ValueError: settings that exclude each other, too little coverage, or a budget out of reach.
        """
        config = self.config
        if config.plan is not None and config.budget == DEFAULT_BUDGET:
            config.budget = None  # of a quantized model, which says how its plan was made
        if config.plan is not None and config.budget is not None:
            raise SettingError("`plan` already fixes every width: remove `budget`.")
        if config.budget is None:
            self.plan, self.coverage = make_plan(model, config)
        else:
            self.options, self.coverage = list_schemes(model, config)
        self.coverage.check_minimum(config.calibration.min_coverage)
        self.unused = report_unused(model, find_unused(model, checkpoint_files), self.coverage)
        if config.budget is not None:
            limits = reachable(self.options, self._fused())
            if config.budget.counts_file:
                predict_headers(self.coverage, model, self.options, checkpoint_files, self.unused)
            self._budget = budget_in_bits(config, self.options, self.coverage, limits)
            allocation = only_choice(self.options, self._budget, self._fused())
            if allocation is not None:
                self._use_allocation(allocation)
                self.options = {}

    def skeleton(self, model: PreTrainedModel) -> PreTrainedModel:
        """Returns the packed model without weights. While a budget has not chosen, the plan becomes a likely one."""
        if self.options:
            self.plan = self.coverage.plan_of(likely_plan(self.options, self._budget, self._fused()))
        return packed_skeleton(model, self.plan)

    def count_headers(
        self, model: PreTrainedModel, skeleton: PreTrainedModel, checkpoint_files: Sequence[str]
    ) -> dict[str, Tensor]:
        """Adds the headers of the planned file to the coverage, and returns the tensors that will be saved."""
        tensors = self._count_headers(model, skeleton, checkpoint_files)
        if self.options:  # they are counted again for the plan that is chosen
            self._unpacked, self._files = packed_skeleton(model, {}), checkpoint_files
        return tensors

    def use_uniform(self, why: str) -> None:
        """Takes one width for all, with a warning that says why."""
        assert self.config.budget is not None
        uniform = self.config.budget.uniform
        assert uniform is not None
        logger.warning(
            "%s: every weight gets %d bits. Give bits=%d to say so, or a `dataset` of conversations in which the "
            "assistant answers.", why, uniform, uniform,
        )  # fmt: skip
        self._use_allocation(Allocation({path: option_at(choices, uniform) for path, choices in self.options.items()}))
        self.options = {}
        self._count_headers_of_plan()

    def allocate(self, model: PreTrainedModel, data: CalibrationData) -> None:
        """Chooses the plan under the budget, by what each width costs the answers.

        Where the model fails while they are measured, the default takes one width for all.

        Raises:
            SettingError: `work_dir` holds another run, is in use, or cannot be written.
            OSError: a file in it cannot be written.
            torch.OutOfMemoryError: the measurement does not fit; the message says what would need less memory.
            Exception: what the model raised, under a budget that was given or in several processes.
        """
        from .bit_costs.measure import measure_costs  # here: greenlet comes with it

        assert self.config.budget is not None
        try:
            self.options = measure_costs(model, self.options, data, self.config)
        except (SettingError, OSError, torch.OutOfMemoryError):  # of the folder, or of this machine
            raise
        except Exception as error:  # of the model's own forward pass, too, which rounding does without
            if self.config.budget != DEFAULT_BUDGET or data.ranks.size > 1:
                raise
            self.use_uniform(f"What widths cost the answers cannot be measured ({error})")
            return
        fused = self._fused()
        allocation = allocate(self.options, self._budget, fused)
        logger.info("%s", describe(allocation, self.options, self._budget, fused))
        self.costs = width_costs(self.config.budget.cost, self.options, allocation, self.coverage, fused)
        self._use_allocation(allocation)
        self._count_headers_of_plan()

    def forget_options(self) -> None:
        """Frees what only the choice needed."""
        self.options, self._unpacked = {}, None

    def _use_allocation(self, allocation: Allocation) -> None:
        self.plan = self.coverage.plan_of(allocation.schemes)
        self.coverage = self.coverage.with_choice(allocation.chosen)

    def _count_headers_of_plan(self) -> None:
        """Counts the headers again: the plan is another one than was likely."""
        assert self._unpacked is not None
        self._count_headers(self._unpacked, packed_skeleton(self._unpacked, self.plan), self._files)

    def _count_headers(
        self, model: PreTrainedModel, skeleton: PreTrainedModel, checkpoint_files: Sequence[str]
    ) -> dict[str, Tensor]:
        tensors, metadata = checkpoint_tensors(skeleton, self.plan, self.unused)
        count_headers(self.coverage, model, tensors, metadata, checkpoint_files)
        return tensors

    def _fused(self) -> list[list[str]]:
        budget = self.config.budget
        if budget is None or not budget.fuse:
            return []
        sets = fused_sets(self.options)
        if budget.uniform is None:
            return sets
        # The user did not ask for this budget's widths: layers that an override or a shape sets apart may differ.
        schemes = {path: schemes_of(choices) for path, choices in self.options.items()}
        return [group for group in sets if all(schemes[path] == schemes[group[0]] for path in group)]
