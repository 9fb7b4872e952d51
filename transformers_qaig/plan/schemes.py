"""Resolves how a configuration stores one weight: bits, overrides, a given plan, a fitting group size, a rotation."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from ..config import QAIGConfig
from ..formats.hadamard import fit_block
from ..formats.scheme import Rotation, WeightScheme, parse_plan
from ..nn.experts_layout import ExpertsLayout
from ..utils.errors import SettingError
from ..utils.logging import get_logger
from ..utils.quote import quote
from .allocate import SchemeOption
from .experts import expand
from .patterns import ModelNames

logger = get_logger(__name__)

BLOCK = 128
"""The most channels that are rotated together."""
SKIPPED = "listed in `modules_to_not_convert`"


class SchemeResolver:
    """Resolves the schemes of one weight after the other.

    It remembers which overrides and paths have matched nothing yet.
    """

    def __init__(self, config: QAIGConfig, model: nn.Module, stacks: Mapping[str, ExpertsLayout]):
        """Finds the modules and parameters that the configuration's patterns mean.

        Args:
            config: how to quantize.
            model: may be on the meta device.
            stacks: its stacks of experts, by path.

        Raises:
            ValueError: a pattern that matches no module and no parameter; the message has the nearest name.
        """
        self.config = config
        names = ModelNames(model, stacks)
        self.skipped = set().union(*_matches(names, config.modules_to_not_convert or [], "modules_to_not_convert"))
        overrides = config.overrides or {}
        self.overrides = dict(zip(overrides, _matches(names, overrides, "overrides")))
        self.unused = set(overrides)
        self.plan = {} if config.plan is None else expand(parse_plan(config.plan, config.activation_bits), stacks)
        self.given = set(self.plan)
        self.refitted: set[tuple[int, int]] = set()
        self.dense: dict[str, str] = {}  # path → why it cannot be packed

    @property
    def chooses_outside(self) -> bool:
        """Whether a budget chooses for weights outside the blocks, too."""
        budget = self.config.budget
        return self.config.plan is None and budget is not None and budget.counts_file

    def options(
        self,
        path: str,
        weight: Tensor,
        reason: str,
        candidates: list[WeightScheme] | None,
        unrotated: str = "",
        may_stay: bool = False,
    ) -> tuple[list[SchemeOption], str]:
        """Returns the ways to store one weight, or none and why it stays as it is.

        Args:
            path: of the weight, in the model.
            weight: `[N, K]`, may be on the meta device.
            reason: why it cannot be packed; empty if it can.
            candidates: schemes to choose from, unless the given plan names the weight; None if there are none.
            unrotated: what it is, if its input is not rotated: `"experts"`, `"embeddings and heads"`.
            may_stay: whether staying as it is is the last of the ways, unless an override gives its bits.
        """
        config = self.config
        if path in self.skipped:  # also of a given plan
            self.given.discard(path)
            reason = SKIPPED
        if not reason and path in self.plan:
            candidates = [self.plan[path]]
        if not reason and candidates is None:
            reason = "not in the given plan"
        if reason or candidates is None:
            self.dense[path] = reason
            return [], reason
        self.given.discard(path)
        for pattern, value in (config.overrides or {}).items():
            if path in self.overrides[pattern]:
                self.unused.discard(pattern)
                changes = value if isinstance(value, dict) else {"bits": value}
                candidates = [replace(scheme, **changes) for scheme in candidates]
                may_stay = may_stay and "bits" not in changes
        rows, columns = weight.shape
        schemes = [self._rotated(self._fitted(scheme, columns), columns, path, unrotated) for scheme in candidates]
        sizes = {scheme: scheme.stored_bits(rows, columns, 8 * weight.element_size()) for scheme in schemes}
        elements = weight.numel()
        found = [SchemeOption(scheme, size, float("nan"), elements) for scheme, size in sizes.items()]
        if may_stay:
            found.append(SchemeOption(None, 8 * weight.element_size() * elements, 0.0, elements))
        return found, ""

    def _rotated(self, scheme: WeightScheme, columns: int, path: str, unrotated: str) -> WeightScheme:
        """Returns the scheme with the configuration's rotation; one of a given plan is checked and stays."""
        if scheme.rotation is None:
            wanted = self.config.plan is None and self.config.rotates and not unrotated
            block = fit_block(columns, BLOCK) if wanted else None
            return scheme if block is None else replace(scheme, rotation=Rotation(block, self.config.seed))
        if unrotated:
            raise SettingError(f"plan[{path!r}]: {unrotated} are not rotated; remove its `rotation`.")
        try:
            scheme.rotation.check(columns)
        except ValueError as error:
            raise SettingError(f"plan[{path!r}] is for another model: {error}.") from error
        return scheme

    def _fitted(self, scheme: WeightScheme, columns: int) -> WeightScheme:
        wanted, fitted = scheme.group_size, scheme.fitted(columns)
        if fitted.group_size != wanted and columns > wanted and (columns, wanted) not in self.refitted:
            self.refitted.add((columns, wanted))
            chosen = fitted.group_size if fitted.group_size > 0 else "per channel"
            logger.info("group_size %d does not divide %d input channels: %s", wanted, columns, chosen)
        return fitted

    def check(self, example: str) -> None:
        """Raises `ValueError` if an override or a path of the given plan has reached nothing that is packed."""
        for pattern in sorted(self.unused):
            if stays := next((path for path in self.dense if path in self.overrides[pattern]), ""):
                raise SettingError(
                    f"overrides[{quote(pattern)}] reaches no weight that would be packed: {stays} is "
                    f"{self.dense[stays]}. Remove it. A path of a packed weight looks like {example!r}."
                )
            raise SettingError(
                f"overrides[{quote(pattern)}] reaches no weight that would be packed. Tower, head and embeddings are "
                "packed with `vision_bits`, `lm_head_bits`, `embedding_bits`, or a budget as a size. A path of a "
                f"packed weight looks like {example!r}."
            )
        if self.given:
            raise SettingError(
                f"`plan` names {sorted(self.given)[0]!r}, but this model has no such weight to pack. A path looks like "
                f"{example!r}."
            )


def _matches(names: ModelNames, patterns: Iterable[str], argument: str) -> list[set[str]]:
    """Returns the paths that each pattern reaches."""
    found = [names.matching(pattern) for pattern in patterns]
    for pattern, paths in zip(patterns, found):
        if not paths:
            raise SettingError(
                f"`{argument}` names {quote(pattern)}, which matches no module and no parameter of this model."
                f"{names.nearest(pattern)}"
            )
        _log_matches(names, pattern, argument)
    return found


def _log_matches(names: ModelNames, pattern: str, argument: str) -> None:
    """Logs how many modules a bare name reaches, if several; it warns if some of them are called otherwise."""
    ending = names.ending(pattern)
    if ending.total() < 2:
        return
    counts = [f"{count} x {name}" for name, count in ending.most_common()]
    logger.log(
        logging.INFO if len(ending) == 1 else logging.WARNING,
        "`%s` names %s, and reaches %d modules whose names end so: %s.",
        argument, quote(pattern), ending.total(), ", ".join(counts[:8]) + (", ..." if len(counts) > 8 else ""),
    )  # fmt: skip
