"""`CostStore`: keeps measured errors and costs in the work folder, so that an interrupted measurement resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from ...calibration.resume import run_facts
from ...config import QAIGConfig
from ...data.calibration_data import CalibrationData
from ...distributed.work_folder import shared_folder
from ...nn.linear import get_linear
from ...plan.allocate import SchemeOption, schemes_of
from ...utils.hashing import digest

T = TypeVar("T")


class RunningCosts(NamedTuple):
    """What the first samples cost.

    Attributes:
        total: fp32 `[..., M]`, the sum over these samples for each of M weights.
        tokens: of their answers.
        done: number of these samples; those that were left out on the way count.
    """

    total: Tensor
    tokens: int
    done: int


class CostStore(ExitStack):
    """The files of a measurement in its folder, which is locked until the end of this context.

    What was measured without some samples is read only by a run that leaves them out, too.

    Args:
        options: whose costs are measured.
        data: the calibration data.
        config: of the run; without a `work_dir` nothing is kept.
        model: in full precision; hashed if there is a `work_dir`.

    Raises:
        ValueError: the folder belongs to another run, is in use by one, or cannot be written.
    """

    def __init__(
        self,
        options: Mapping[str, Sequence[SchemeOption]],
        data: CalibrationData,
        config: QAIGConfig,
        model: nn.Module,
    ):
        super().__init__()

        def run(alive: Callable[[], None]) -> dict[str, Any]:
            return {
                "options": {path: [s.to_dict() for s in schemes_of(choices)] for path, choices in options.items()},
                "answers": digest([{"a": a} for a in data.answer_masks]),
                "recipe": config.recipe.to_dict(),
                "seed": config.seed,
                "activation_bits": config.activation_bits,
                **run_facts(config, data, model, alive),
            }

        work_path = config.calibration.work_path
        folder = work_path / "costs" if work_path is not None else None
        self._folder, self._exclusions = self.enter_context(shared_folder(folder, run, data.ranks)), data.exclusions

    def costs(self, index: int, cost: str, paths: Sequence[str]) -> dict[str, float] | None:
        """Returns the costs of all weights at one width, or None."""

        def read(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> dict[str, float]:
            found = json.loads(facts["costs"])
            return {path: float(found[path]) for path in paths}

        return self._load(f"{index}.costs.{cost}", read)

    def save_costs(self, index: int, cost: str, found: Mapping[str, float]) -> None:
        """Keeps the costs of all weights at one width."""
        self._save(f"{index}.costs.{cost}", {}, {"costs": json.dumps(found)})

    def running_costs(self, index: int, cost: str, samples: Sequence[int], weights: int) -> RunningCosts | None:
        """Returns what the first samples cost at one width, or None.

        Args:
            index: of the width.
            cost: how loss is predicted.
            samples: their numbers in the data set, of all that were there when the measurement began.
            weights: M.
        """

        def read(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> RunningCosts:
            found = RunningCosts(tensors["total"], int(facts["tokens"]), int(facts["done"]))
            if json.loads(facts["samples"]) != list(samples) or not 0 < found.done < len(samples):
                raise ValueError("it is of other samples")
            if found.total.shape[-1] != weights:
                raise ValueError(f"it is of {found.total.shape[-1]} weights, not {weights}")
            return found

        return self._load(f"{index}.running_costs.{cost}", read)

    def save_running_costs(self, index: int, cost: str, samples: Sequence[int], found: RunningCosts) -> None:
        """Keeps what the first samples cost at one width, in the place of what fewer of them did."""
        facts = {"tokens": str(found.tokens), "done": str(found.done), "samples": json.dumps(list(samples))}
        self._save(f"{index}.running_costs.{cost}", {"total": found.total}, facts)

    def errors(self, index: int, path: str, block: nn.Module, names: Sequence[str]) -> dict[str, Tensor] | None:
        """Returns the rounding errors of a target's linears at one width, or None."""

        def read(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> dict[str, Tensor]:
            for name in names:
                if tensors[name].shape != get_linear(block, name).weight.shape:
                    raise ValueError(f"{name} has shape {list(tensors[name].shape)}")
            return {name: tensors[name] for name in names}

        return self._load(f"{index}.errors.{path}", read)

    def save_errors(self, index: int, path: str, found: Mapping[str, Tensor]) -> None:
        """Keeps the rounding errors of a target's linears at one width."""
        self._save(f"{index}.errors.{path}", found, {})

    def _load(self, name: str, read: Callable[[dict[str, Tensor], dict[str, str]], T]) -> T | None:
        """Reads a file, and leaves out the samples that it was measured without."""
        if self._folder is None:
            return None

        def read_both(tensors: dict[str, Tensor], facts: dict[str, str]) -> tuple[T, dict[int, str]]:
            left_out = {int(index): str(where) for index, where in json.loads(facts["left_out"]).items()}
            return read(tensors, facts), left_out

        found = self._folder.load_as(name, read_both)
        if found is None:
            return None
        self._exclusions.add(found[1], "Begin anew with other samples.")
        return found[0]

    def _save(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
        if self._folder is not None:
            self._folder.save(name, tensors, {**facts, "left_out": json.dumps(self._exclusions.where)})
