"""`CalibrationConfig`: how calibration reads its data and where it runs; never saved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ..utils.quote import quote
from .folder import check_folder
from .misplaced import register_settings, remedy
from .plain import plain
from .size import parse_memory


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """How calibration reads its data and where it runs. It is for one run, and never saved.

    Args:
        columns: Which columns of `dataset` hold what, when their names are not the usual ones: `{"image": "picture"}`.
        max_length: Tokens of a sample. A longer conversation loses video frames and parts of its texts. By default what
            the model can take.
        max_pixels: Pixels of an image or a video frame. Larger ones are scaled down. By default any number. It does not
            reach samples that are processor outputs. A processor that scales every image to one size scales these up
            again: they lose detail, and a sample gets no shorter.
        processor: The model's processor, or where to load it from; by default the model's own repository.
        token: For the processor and the data set; by default the one given to `from_pretrained`.
        trust_remote_code: For the processor; also on if `from_pretrained` has it on.
        device: Where blocks are calibrated, such as `"cuda:0"`; by default the first accelerator, else the CPU.
        work_dir: Folder in which every finished block is kept, so that an interrupted run resumes there. Weights are
            mapped from its files, so that a model may be larger than memory.
        live_page: HTML file that shows what is done so far. It is written again after every block.
        min_coverage: Share of the weights in the language model's blocks that must get packed. Below it quantization
            stops before any weight is read. Weights that `modules_to_not_convert` lists do not count.
        moe_calibrate_all_experts: Whether every expert is calibrated by all tokens, not only by those that are routed
            to it. What the model computes stays routed.
        expert_memory: Memory that the second moments of experts may take at once, such as `"8GB"`, or a number of
            bytes; then what `best` learns of them, which is in files beyond it. By default it is a quarter of what is
            free on the device. On the CPU the result does not depend on it.

    Raises:
        ValueError: a value out of its range.
    """

    columns: Mapping[str, str] | None = None
    max_length: int | None = None
    max_pixels: int | None = None
    processor: Any = None
    token: str | bool | None = field(default=None, repr=False)
    trust_remote_code: bool = False
    device: str | torch.device | None = None
    work_dir: str | os.PathLike[str] | None = None
    live_page: str | os.PathLike[str] | None = None
    min_coverage: float = 0.9
    moe_calibrate_all_experts: bool = False
    expert_memory: int | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "min_coverage", plain(self.min_coverage, "min_coverage"))
        if self.columns is not None and not _maps_names(self.columns):
            raise ValueError(
                f"`columns` must map parts of a sample to columns, as in {{'image': 'picture'}}, got "
                f"{quote(self.columns)}."
            )
        for name in ("max_length", "max_pixels"):
            value = plain(getattr(self, name), name)
            object.__setattr__(self, name, value)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"`{name}` must be a positive integer or None, got {quote(value)}.")
        _check_processor(self.processor)
        if not (self.token is None or isinstance(self.token, bool) or (isinstance(self.token, str) and self.token)):
            raise ValueError(f"`token` must be a string, True, False or None, got a {type(self.token).__name__}.")
        for name in ("trust_remote_code", "moe_calibrate_all_experts"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be True or False, got {quote(getattr(self, name))}.")
        if self.expert_memory is not None:
            try:
                parse_memory(self.expert_memory)
            except ValueError as error:
                raise ValueError(f"`expert_memory`: {error}") from None
        if self.work_dir is not None:
            check_folder(self.work_dir, "work_dir")
        if self.live_page is not None:
            _check_page(self.live_page)
        object.__setattr__(self, "device", _checked_device(self.device))
        if type(self.min_coverage) not in (int, float) or not 0 <= self.min_coverage <= 1:
            raise ValueError(f"`min_coverage` must be a share between 0 and 1, got {quote(self.min_coverage)}.")

    @property
    def work_path(self) -> Path | None:
        """`work_dir` as a path, in which `~` is the home folder; None without one."""
        return None if self.work_dir is None else Path(os.path.expanduser(self.work_dir))

    @classmethod
    def of(cls, calibration: Mapping[str, Any] | CalibrationConfig | None) -> CalibrationConfig:
        """Makes the settings from what a user gives: None, a mapping of the arguments, or an object.

        Args:
            calibration: one of these.

        Raises:
            ValueError: it is none of these, or has an unknown key.
        """
        if isinstance(calibration, CalibrationConfig):
            return calibration
        if calibration is not None and not isinstance(calibration, Mapping):
            raise ValueError(f"`calibration` must be a CalibrationConfig or a mapping, got {quote(calibration)}.")
        known = [field.name for field in fields(cls)]
        for key in calibration or {}:
            if key not in known:
                raise ValueError(f"`calibration` has no {quote(key)}. {remedy(key, known)}")
        return cls(**(calibration or {}))


register_settings("CalibrationConfig", [setting.name for setting in fields(CalibrationConfig)])


def _maps_names(columns: object) -> bool:
    return isinstance(columns, Mapping) and all(isinstance(n, str) and n for pair in columns.items() for n in pair)


def _check_processor(processor: Any) -> None:
    is_place = isinstance(processor, (str, os.PathLike)) and bool(os.fspath(processor))
    is_object = callable(processor) and not isinstance(processor, type)
    if processor is not None and not is_place and not is_object:
        raise ValueError(
            "`processor` must be an object, such as AutoProcessor.from_pretrained(...), or a path or Hub id to load "
            f"it from, got {quote(processor)}."
        )


def _check_page(page: Any) -> None:
    path = os.path.expanduser(os.fspath(page)) if isinstance(page, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path.endswith(".html"):
        raise ValueError(f"`live_page` must be the path of an .html file, got {quote(page)}.")
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise ValueError(f"`live_page` must be a file in a folder that is there, got {quote(page)}.")


def _checked_device(device: Any) -> Any:
    if device is None:
        return None
    try:
        if isinstance(device, bool):
            raise TypeError("a bool is not a device")
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"CalibrationConfig(device={quote(device)}) is no device: {error}") from error
    if found.type == "meta":
        raise ValueError("CalibrationConfig(device='meta') is the meta device, which computes nothing.")
    return found if isinstance(device, int) else device
