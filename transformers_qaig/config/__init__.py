"""QAIGConfig: every knob of the quantizer, validated in one place, with a JSON round trip."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from ..recipes import recipe_of
from ..scheme import is_int
from ..utils.logging import get_logger
from ..utils.quote import quote
from .plain import plain
from .plan_source import copy_plan, read_plan
from .validation import CHOICES, COSTS, check_settings

__all__ = ["CHOICES", "COSTS", "QAIGConfig"]

logger = get_logger(__name__)

QUANT_METHOD = "qaig"
FORMAT_VERSION = 1
"""Version of what config.json and the packed tensors mean; raised only when an older package would misread them."""
FORMAT_NEEDS = "0.1.0"
"""First release of transformers-qaig that reads `FORMAT_VERSION`."""

DEFAULT_COST = "fisher"

_RUNTIME = (
    "processor",
    "dataset",
    "dataset_columns",
    "token",
    "trust_remote_code",
    "work_dir",
    "calibration_device",
    "max_memory",
    "offload_folder",
)


class QAIGConfig(QuantizationConfigMixin):
    """
    How to quantize a vision-language model, and, in a saved model, how it was quantized.

    Args:
        bits (`int` or `list[int]`, *optional*, defaults to 4, or `[2, 3, 4, 8]` under a budget):
            Bits per weight, 2 to 8; with `target_bits` or `target_size`, the widths to choose from.
        group_size (`int`, *optional*, defaults to 128):
            Consecutive input channels that share one scale and zero point; at least 32, or -1 for one group per output
            channel. Where it does not divide a layer's input width, the largest divisor of that width between 32 and
            `group_size` is used instead, else one group per channel; the plan says which.
        sym (`bool`, *optional*, defaults to `False`):
            Symmetric grid around zero, without zero points.
        recipe (`str`, *optional*, defaults to `"default"`):
            How much effort goes in: one of the names in `transformers_qaig.recipes.RECIPES`.
        stages (`dict[str, str | int | bool]`, *optional*):
            Choices of the recipe to make otherwise, by attribute of [`transformers_qaig.recipes.Recipe`]:
            `{"rounding": "gptq", "token_weights": "qig"}`.
        modules_to_not_convert (`list[str]`, *optional*):
            Weight paths or shell patterns (`"*.layers.0.*"`) that stay in full precision.
        overrides (`dict[str, int | dict]`, *optional*):
            Shell pattern on the weight path to bits (`{"*.down_proj": 4}`) or to any of `bits`, `group_size`, `sym`
            (`{"*.o_proj": {"bits": 8, "group_size": -1}}`). Of several matches the last one wins.
        min_coverage (`float`, *optional*, defaults to 0.9):
            Share of the weights in the language model's blocks that must get packed; below it quantization stops before
            any weight is read.
        num_samples (`int`, *optional*, defaults to 128):
            Calibration samples taken from `dataset`.
        seed (`int`, *optional*, defaults to 0):
            Seed of everything random: which samples are taken, probing.
        activation_bits (`int`, *optional*, defaults to 16):
            8 rounds the input of every packed layer to 8 bits per token, on the fly: faster where many tokens are
            computed at once, at a cost in accuracy. 16 takes it as it is.
        target_bits (`float`, *optional*):
            A budget: stored bits per packed weight of the language model's blocks (codes, scales and zero points), on
            average and at most. Every such weight gets the width with which the answers are predicted to lose least;
            what is packed outside the blocks has the bits given for it.
        target_size (`int` or `str`, *optional*):
            The same as the size of all weights of the saved model, packed or not, inside the blocks or not: bytes, or
            `"3.5GiB"`.
        cost (`str`, *optional*, defaults to `"fisher"`):
            How the loss of a width is predicted, under a budget: `"fisher"`, `"alone"` (slow), `"error"`, `"path"`.
        fuse_groups (`bool`, *optional*, defaults to `False`):
            Under a budget, give q, k and v one width, and gate and up one: engines that merge them need that.
        vision_bits (`int`, *optional*):
            Bits, 2 to 8, of the vision tower's and the projector's linears; in full precision if not given. They are
            calibrated like the language model's, which then sees the quantized tower's features. Group size and grid
            are those above; `overrides` reach these weights and those of the next two, too.
        lm_head_bits (`int`, *optional*):
            Bits of the output head.
        embedding_bits (`int`, *optional*):
            Bits of the input embeddings, whose rows are dequantized on lookup. Where they are tied to the head, both
            are one packed tensor: give one of the two, or both the same.
        plan (`dict` or `str`, *optional*):
            Weight path to `{"bits", "group_size", "sym"}`, and `"rotation"` where the input is rotated (in a plan that
            is given: where it is if that lowers the error). The quantizer writes here what it did. Given to quantize a
            model, it is what is done, but for `overrides` and `modules_to_not_convert`; a weight that it does not name
            stays as it is, unless it belongs to a part whose own bits (`vision_bits`, ...) are given. May be a JSON
            file that holds a plan or a whole config.json, a folder with a config.json, or another `QAIGConfig`.
        format_version (`int`), needs_version (`str`):
            Written by the quantizer, checked on reading.
        dataset (*optional*):
            Calibration data: chat conversations, a `datasets` name or object, processor outputs; `None` is the
            bundled image+text set. See [`transformers_qaig.data.samples.load_samples`]. This and all below are
            for the run only and never saved.
        dataset_columns (`dict[str, str]`, *optional*):
            Which columns of `dataset` hold what, when their names are not the usual ones.
        processor (*optional*):
            The model's processor, or where to load it from; by default the model's own repository.
        token (`str` or `bool`, *optional*), trust_remote_code (`bool`, *optional*, defaults to `False`):
            Handed to the processor's and the data set's loading, which Transformers does not pass on.
        work_dir (`str`, *optional*):
            Folder in which every finished block is kept, so that an interrupted run resumes there.
        calibration_device (`str`, *optional*):
            Where blocks are calibrated; by default the first accelerator, else the CPU.
        max_memory (`dict`, *optional*), offload_folder (`str`, *optional*):
            As in `from_pretrained`, whose own come first: for placing the packed model on `device_map`. What goes to
            disk goes into a new folder below `offload_folder`, which is removed with the model.

    Raises:
        ValueError: a value out of its range, or a newer `format_version`.
        TypeError: an unknown argument; the message names the nearest known one.
    """

    def __init__(
        self,
        /,
        bits: int | Sequence[int] | None = None,
        group_size: int = 128,
        sym: bool = False,
        recipe: str = "default",
        modules_to_not_convert: list[str] | None = None,
        overrides: dict[str, Any] | None = None,
        min_coverage: float = 0.9,
        num_samples: int = 128,
        seed: int = 0,
        activation_bits: int = 16,
        target_bits: float | None = None,
        target_size: int | str | None = None,
        cost: str = DEFAULT_COST,
        fuse_groups: bool = False,
        lm_head_bits: int | None = None,
        embedding_bits: int | None = None,
        vision_bits: int | None = None,
        plan: Mapping[str, Any] | QAIGConfig | str | os.PathLike | None = None,
        format_version: int = FORMAT_VERSION,
        needs_version: str = FORMAT_NEEDS,
        stages: Mapping[str, Any] | None = None,
        *,
        dataset: Any = None,
        dataset_columns: Mapping[str, str] | None = None,
        processor: Any = None,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
        work_dir: str | os.PathLike | None = None,
        calibration_device: Any = None,
        max_memory: dict | None = None,
        offload_folder: str | os.PathLike | None = None,
        **unknown: Any,
    ):
        self.quant_method = unknown.pop("quant_method", QUANT_METHOD)  # type: ignore[assignment]
        budgeted = target_bits is not None or target_size is not None
        if bits is None:
            bits = CHOICES if budgeted else 4
        self.bits = bits
        self.group_size = group_size
        self.sym = sym
        self.recipe = recipe
        self.stages = stages
        self.modules_to_not_convert = modules_to_not_convert
        self.overrides = overrides
        self.min_coverage = min_coverage
        self.num_samples = num_samples
        self.seed = seed
        self.activation_bits = activation_bits
        self.target_bits = target_bits
        self.target_size = target_size
        self.cost = cost
        self.fuse_groups = fuse_groups
        self.lm_head_bits = lm_head_bits
        self.embedding_bits = embedding_bits
        self.vision_bits = vision_bits
        self.plan = read_plan(plan)
        self.format_version = format_version
        self.needs_version = needs_version
        self.dataset = dataset
        self.dataset_columns = dataset_columns
        self.processor = processor
        self.token = token
        self.trust_remote_code = trust_remote_code
        self.work_dir = work_dir
        self.calibration_device = calibration_device
        self.max_memory = max_memory
        self.offload_folder = offload_folder
        self._validate(unknown)

    def validate(self) -> None:
        """Checks all settings again: a caller may have set attributes.

        Raises:
            ValueError: a value out of its range.
        """
        self._validate({})

    def _validate(self, unknown: Mapping[str, Any]) -> None:
        # The version comes first: a newer file may well hold keys that are unknown here.
        if not is_int(self.format_version) or self.format_version < 1:
            raise ValueError(f"`format_version` must be a positive integer, got {quote(self.format_version)}.")
        if not isinstance(self.needs_version, str):
            raise ValueError(f"`needs_version` must be a version such as '0.1.0', got {quote(self.needs_version)}.")
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"This model was saved in format {quote(self.format_version)}, and this installation reads up to "
                f"{FORMAT_VERSION}: upgrade transformers-qaig to >= {self.needs_version[:40]}."
            )
        if self.quant_method != QUANT_METHOD:
            raise ValueError(f"`quant_method` must be {QUANT_METHOD!r}, got {quote(self.quant_method)}.")
        for name in unknown:
            near = difflib.get_close_matches(name, self._known(), n=1)
            hint = f" Did you mean `{near[0]}`?" if near else f" Known: {', '.join(self._known())}."
            raise TypeError(f"QAIGConfig got an unknown argument {quote(name)}.{hint}")

        for name, value in vars(self).items():
            if name not in _RUNTIME:
                setattr(self, name, plain(value, name))
        check_settings(self)
        if isinstance(self.bits, list):
            self.bits = sorted(set(self.bits))

    @property
    def has_budget(self) -> bool:
        """Whether widths are to be chosen under a budget."""
        return self.target_bits is not None or self.target_size is not None

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """The entries that a weight may have in the plan, overrides apart: several only under a budget."""
        widths = self.bits if isinstance(self.bits, list) else [self.bits]
        return [self.entry(bits) for bits in widths]

    def entry(self, bits: Any) -> dict[str, Any]:
        """The plan's entry of a weight with `bits` bits, overrides apart."""
        return {"bits": bits, "group_size": self.group_size, "sym": self.sym}

    @property
    def rotates(self) -> bool:
        """Whether inputs are to be rotated."""
        wanted = recipe_of(self.recipe, self.stages).rotation
        return wanted == "all" or (wanted == "a8" and self.activation_bits == 8)

    @classmethod
    def _known(cls) -> list[str]:
        names = cls.__init__.__code__.co_varnames[1 : cls.__init__.__code__.co_argcount]
        return [*names, *_RUNTIME]

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> QAIGConfig | tuple[QAIGConfig, dict[str, Any]]:
        """
        The configuration in a mapping: a checkpoint's config.json, which anybody may have written.

        No file is opened for its `plan`. What is for the run only (`processor`, `trust_remote_code`, ...) is not taken:
        it would reach whoever quantizes with this configuration next. From a checkpoint it is dropped, with a warning.

        Raises:
            ValueError: a value out of its range, or a `plan` that is no mapping.
            TypeError: an unknown argument, or one for the run only where there is no `plan`.
        """
        settings = {name: value for name, value in config_dict.items() if name not in _RUNTIME}
        plan = settings.get("plan")
        if plan is not None and not isinstance(plan, Mapping):
            raise ValueError(
                f"`plan` in a config.json or another mapping must be a mapping itself, got {quote(plan)}: to read a "
                "plan from a file of yours, use QAIGConfig(plan=...)."
            )
        given = [name for name in _RUNTIME if config_dict.get(name) is not None and config_dict[name] is not False]
        if given and plan is None:
            raise TypeError(
                f"`{given[0]}` is for one run and not taken from a mapping: give it as QAIGConfig({given[0]}=...)."
            )
        if given:
            logger.warning("config.json sets %s, for one run only: ignored.", ", ".join(f"`{name}`" for name in given))
        return super().from_dict(settings, return_unused_kwargs, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """What belongs in config.json: everything but the runtime-only fields."""
        settings = copy.deepcopy({k: v for k, v in self.__dict__.items() if k not in (*_RUNTIME, "plan")})
        return {**settings, "plan": copy_plan(self.plan)}

    def __iter__(self):
        yield from self.to_dict().items()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QAIGConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict) -> QAIGConfig:
        # from_pretrained copies the model's config several times: a plan of a million entries is not checked each time,
        # and processors and data sets are shared.
        memo[id(self)] = new = type(self).__new__(type(self))
        new.__dict__.update(self.to_dict(), **{name: getattr(self, name) for name in _RUNTIME})
        return new
