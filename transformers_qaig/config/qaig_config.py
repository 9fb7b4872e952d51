"""`QAIGConfig`: every setting of the quantizer in one place, with a JSON round trip."""

from __future__ import annotations

import copy
import functools
import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from ..formats.scheme import WeightScheme
from ..utils.logging import get_logger
from .attributes import Attributes
from .budget import DEFAULT_BUDGET, BitBudget
from .calibration import CalibrationConfig
from .deprecated import OLD_NAMES, ONLY_OURS, translate
from .display import as_python, is_being_printed, summary
from .file_format import QUANT_METHOD, check_format, format_of, read_settings, true_to_plan
from .misplaced import register_settings
from .plain import plain
from .plan_source import copy_plan, read_plan
from .recipes import Recipe
from .validation import check_settings, refuse_unknown, warn_without_effect

logger = get_logger(__name__)

_PLAIN = (
    "bits", "group_size", "sym", "activation_bits", "modules_to_not_convert", "overrides", "vision_bits",
    "lm_head_bits", "embedding_bits", "plan", "num_samples", "seed",
)  # fmt: skip
"""Settings that config.json holds as they are."""
DEFAULT_BITS, DEFAULT_GROUP_SIZE = 4, 128


class QAIGConfig(Attributes, QuantizationConfigMixin):
    """How to quantize a vision-language model, and, in a saved model, how it was quantized.

    Args:
        bits: Bits per weight, 2 to 8. Without them, a `budget` or a `plan`, `recipe="default"` and `"best"` choose 3, 4
            or 8 for each layer: in all no more than 4 for all would take. Other recipes take 4.
        group_size: Consecutive input channels that share one scale and zero point, by default 128; at least 32, or -1
            for one group per output channel. Where it does not divide a layer's input width, the largest divisor from
            32 to `group_size` is used instead. Without one there is one group per channel. The plan says which.
        sym: Whether the grid is symmetric around zero, without zero points.
        recipe: How much effort goes in: a name of `transformers_qaig.config.recipes.RECIPES`; or attributes to
            change, with the name of the recipe that they change: `{"name": "default", "rotation": "all"}`.
        activation_bits: 8 rounds the input of every packed layer to 8 bits per token, on the fly: faster where many
            tokens are computed at once, at a cost in accuracy. 16 does not.
        modules_to_not_convert: What stays in full precision: names of modules or parameters, regular expressions, or
            shell patterns (`"*.layers.0.*"`). A name reaches all that is below it. See
            [`transformers_qaig.plan.patterns`].
        overrides: Such a name or pattern to bits (`{"*.down_proj": 4}`) or to any of `bits`, `group_size`, `sym`
            (`{"*.o_proj": {"bits": 8, "group_size": -1}}`). Of several matches the last one wins.
        vision_bits: Bits, 2 to 8, of the vision tower's and the projector's linears. If not given, a `budget` as a size
            chooses; without one they stay in full precision. They are calibrated like the language model's, which then
            reads the quantized tower's features. `overrides` reach these weights and those of the next two, too.
        lm_head_bits: Bits of the output head.
        embedding_bits: Bits of the input embeddings, whose rows are dequantized on lookup. Where they are tied to the
            head, both are one packed tensor: give one of the two, or both the same.
        budget: Instead of `bits`: stored bits per packed weight (`3.2`), the size of the saved model (`"3.5GiB"`, or
            `"4x"` smaller than bfloat16), or a [`BitBudget`]. The answers are predicted to lose least with its widths.
        plan: Weight path to `{"bits", "group_size", "sym"}`, and `"rotation"` where the input is rotated. The quantizer
            writes here what it did. A plan that you give is carried out, except for `overrides` and
            `modules_to_not_convert`. A recipe that validates keeps a rotation in it only if that lowers the error. A
            weight that the plan does not name stays as it is, unless its part has bits of its own (`vision_bits`, ...).
            `bits`, `group_size` and `sym` beside it have no effect on what it names. May be a JSON file that holds a
            plan or a whole config.json, a folder with a config.json, or another `QAIGConfig`.
        dataset: Calibration data: chat conversations, a `datasets` name or object, processor outputs; `None` is the
            bundled image+text set. See [`transformers_qaig.data.samples.load_samples`]. Never saved.
        num_samples: Calibration samples taken from `dataset`.
        seed: Seed of everything random: which samples are taken, probing.
        calibration: How the data are read and where calibration runs. Never saved.
        other: The arguments of release 0.1, with a warning that shows the new spelling.

    Raises:
        ValueError: a value out of its range.
        TypeError: an unknown argument; the message names the nearest known one, or what to write for an argument of
            another library's configuration.
    """

    def __init__(
        self,
        /,
        bits: int | None = None,
        group_size: int | None = None,
        sym: bool = False,
        recipe: str | Recipe | Mapping[str, Any] = "default",
        *,
        activation_bits: int = 16,
        modules_to_not_convert: list[str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        vision_bits: int | None = None,
        lm_head_bits: int | None = None,
        embedding_bits: int | None = None,
        budget: float | str | BitBudget | Mapping[str, Any] | None = None,
        plan: Mapping[str, Any] | QAIGConfig | str | os.PathLike[str] | None = None,
        dataset: Any = None,
        num_samples: int = 128,
        seed: int = 0,
        calibration: CalibrationConfig | Mapping[str, Any] | None = None,
        **other: Any,
    ):
        written_by_us = "format_version" in other
        check_format(other.pop("format_version", 1), other.pop("needs_version", None))
        self.quant_method = other.pop("quant_method", QUANT_METHOD)
        refuse_unknown([name for name in other if name not in OLD_NAMES], argument_names())
        spelled = translate({"bits": bits, "recipe": recipe, "budget": budget, "calibration": calibration, **other})
        if not written_by_us:
            spelled.warn(stacklevel=2)
        self.bits = spelled.settings.get("bits")
        self.group_size = DEFAULT_GROUP_SIZE if group_size is None else group_size
        self.sym = sym
        self.recipe = spelled.settings["recipe"]
        self.activation_bits = activation_bits
        self.modules_to_not_convert = modules_to_not_convert
        self.overrides = overrides
        self.vision_bits = vision_bits
        self.lm_head_bits = lm_head_bits
        self.embedding_bits = embedding_bits
        self.budget = spelled.settings.get("budget")
        self.plan = read_plan(plan)
        self.dataset = dataset
        self.num_samples = num_samples
        self.seed = seed
        self.calibration = spelled.settings["calibration"]
        self.max_memory = spelled.placement.get("max_memory")
        self.offload_folder = spelled.placement.get("offload_folder")
        self.validate()
        if not written_by_us:
            warn_without_effect(vars(self), {"bits": bits, "group_size": group_size, "sym": sym or None})

    def validate(self) -> None:
        """Checks every setting. Call it after setting attributes.

        Raises:
            ValueError: a value out of its range.
        """
        for name in _PLAIN:
            setattr(self, name, plain(vars(self)[name], name))
        check_settings(vars(self), self.candidates)

    @property
    def bits(self) -> Any:
        """Bits per weight. Where none were given: 4, and None under a budget."""
        given = vars(self)["bits"]
        return DEFAULT_BITS if given is None and vars(self).get("budget") is None else given

    @bits.setter
    def bits(self, bits: Any) -> None:
        vars(self)["bits"] = bits

    @property
    def candidates(self) -> list[WeightScheme]:
        """Returns the schemes that a weight may have, overrides apart: several only under a budget."""
        return [self.scheme(bits) for bits in ([self.bits] if self.budget is None else self.budget.candidates)]

    def scheme(self, bits: Any) -> WeightScheme:
        """Returns how a weight with `bits` bits is stored, overrides apart."""
        return WeightScheme(bits, self.group_size, self.sym, activation_bits=self.activation_bits)

    @property
    def rotates(self) -> bool:
        """Whether inputs are to be rotated."""
        wanted = self.recipe.rotation
        return wanted == "all" or (wanted == "a8" and self.activation_bits == 8)

    def with_default_budget(self) -> QAIGConfig:
        """Returns this configuration, or a copy with [`DEFAULT_BUDGET`] where the recipe is to find the widths."""
        if not self._finds_widths:
            return self
        found = copy.deepcopy(self)
        found.budget = DEFAULT_BUDGET
        return found

    @property
    def _finds_widths(self) -> bool:
        """Whether nothing says a width, and the recipe is to find them."""
        given = (vars(self)[name] for name in ("bits", "budget", "plan"))
        return self.recipe.attributed_widths and all(value is None for value in given)

    # -- to and from JSON

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> QAIGConfig | tuple[QAIGConfig, dict[str, Any]]:
        """Reads the configuration in a mapping: a checkpoint's config.json, which anybody may have written.

        No file is opened for its `plan`. Settings for one run (`dataset`, `calibration`, ...) are not taken: they would
        reach the next run with this configuration. Those in a checkpoint are dropped, with a warning.

        Args:
            config_dict: as [`to_dict`] makes it, or as release 0.1 did.
            return_unused_kwargs: return the other `kwargs`, too.
            kwargs: arguments to set besides.

        Raises:
            ValueError: a value out of its range, or a `plan` that is no mapping.
            TypeError: an unknown argument, or one for the run only where there is no `plan`.
        """
        known = {name: value for name, value in kwargs.items() if name in (*argument_names(), *ONLY_OURS)}
        settings, dropped = read_settings(config_dict, known)
        if dropped:
            names = ", ".join(f"`{name}`" for name in dropped)
            logger.warning("config.json sets %s, for one run only: ignored.", names)
        config = cls(**settings)
        unused = {name: value for name, value in kwargs.items() if name not in known}
        return (config, unused) if return_unused_kwargs else config

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """Sets the arguments among `kwargs`, by today's or 0.1's names, checks them, and returns the others.

        Raises:
            ValueError: a value out of its range.
            AttributeError: a name of 0.1 that is a part of an argument now; the message names the argument.
        """
        known = {name: value for name, value in kwargs.items() if name in (*argument_names(), *ONLY_OURS)}
        for name, value in known.items():
            setattr(self, name, value)
        self.validate()
        return {name: value for name, value in kwargs.items() if name not in known}

    def to_dict(self) -> dict[str, Any]:
        """Returns what config.json holds: all that describes the result.

        While a model's config is printed, it returns a summary.
        """
        settings = self._settings()
        return summary(settings, _defaults()) if is_being_printed() else settings

    def _settings(self) -> dict[str, Any]:
        settings = {name: plain(getattr(self, name), name) for name in _PLAIN if name != "plan"}
        if self._finds_widths:
            del settings["bits"]
        settings["recipe"] = self.recipe.to_dict()
        settings["budget"] = None if self.budget is None else self.budget.to_dict()
        settings["plan"] = copy_plan(self.plan)
        coverage = self.calibration.min_coverage
        settings["min_coverage"] = None if coverage == CalibrationConfig.min_coverage else coverage
        settings = {name: value for name, value in settings.items() if value is not None}
        return {"quant_method": QUANT_METHOD, **format_of(settings), **true_to_plan(settings)}

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns what [`to_dict`] does, without the defaults of today's release."""
        always = ("quant_method", "format_version", "needs_version")
        defaults = _defaults()
        return {k: v for k, v in self._settings().items() if k in always or v != defaults.get(k)}

    def __repr__(self) -> str:
        return as_python(self._settings(), _defaults(), self.dataset, self.calibration)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self._settings().items()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QAIGConfig) and self._settings() == other._settings()

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> QAIGConfig:
        # from_pretrained copies the model's config several times: a plan of a million entries is not checked each time,
        # and processors and data sets are shared.
        memo[id(self)] = new = type(self).__new__(type(self))
        copied = {name: plain(vars(self)[name], name) for name in _PLAIN if name != "plan"}
        vars(new).update({**vars(self), **copied, "plan": copy_plan(self.plan)})
        return new


@functools.cache
def argument_names() -> tuple[str, ...]:
    """Returns the arguments of `QAIGConfig`, without those of release 0.1."""
    parameters = inspect.signature(QAIGConfig.__init__).parameters
    return tuple(name for name in parameters if name not in ("self", "other"))


@functools.cache
def _defaults() -> dict[str, Any]:
    return QAIGConfig()._settings()


register_settings("QAIGConfig", argument_names())
