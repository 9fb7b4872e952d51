"""Plans where a model goes once it is packed: it is calibrated on the CPU, whatever `device_map` says."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..config import QAIGConfig
from ..config.devices import Device, bytes_by_device, check_device
from ..config.folder import check_folder
from ..utils.logging import get_logger
from ..utils.quote import quote
from ..utils.suggestion import did_you_mean
from .arguments import loading_arguments
from .offload_folder import OffloadFolder

logger = get_logger(__name__)

INFERRED = ("auto", "balanced", "balanced_low_0", "sequential")
DISK = "disk"


def check_devices(device_map: Any) -> None:
    """Raises `ValueError` if the `device_map` of a packed model names a device that is not there."""
    for part, device in device_map.items() if isinstance(device_map, Mapping) else ():
        if str(device) not in (DISK, "meta", "None"):
            check_device(device, f"`device_map[{part!r}]`")


@dataclass
class Placement:
    """Where the packed model goes.

    Attributes:
        device_map: module path → device; a name in `INFERRED` until [`plan`] has decided; None: it stays on the CPU.
        max_memory: what each device may hold, for an inferred map; None is what is free.
        offload_folder: below which what goes to disk is written.
        offload: this run's folder there, if something goes to disk.
    """

    device_map: dict[str, Device] | str | None = None
    max_memory: Mapping[int | str, int] | None = None
    offload_folder: str | os.PathLike[str] | None = None
    offload: OffloadFolder | None = None

    @classmethod
    def requested(cls, device_map: Any, config: QAIGConfig) -> Placement:
        """Reads what the caller of `from_pretrained` asks for.

        The caller's `max_memory` and `offload_folder` come before the config's.

        Args:
            device_map: as `from_pretrained` takes it.
            config: its `max_memory` and `offload_folder`.

        Raises:
            ValueError: a `device_map` that is none, a device that does not exist, or sizes that cannot be read.
        """
        given = loading_arguments()
        memory = bytes_by_device(given.get("max_memory") or config.max_memory)
        if device_map is None:
            return cls()
        if isinstance(device_map, str) and device_map in INFERRED:
            for device, size in (memory or {}).items():
                if size and isinstance(device, int):
                    check_device(device, "`max_memory`")
        else:
            device_map = _checked(device_map)
        folder = given.get("offload_folder") or config.offload_folder
        if folder is not None:
            check_folder(folder, "offload_folder")
            folder = os.path.abspath(folder)  # the process may change its working directory
        return cls(device_map, memory, folder)

    def plan(self, skeleton: PreTrainedModel) -> None:
        """Decides where everything goes, by the packed sizes.

        Args:
            skeleton: the packed model, on meta.

        Raises:
            ValueError: a map that leaves tensors out, a device that is too small, or no folder or too little space for
                what goes to disk.
        """
        if self.device_map is None:
            return
        if isinstance(self.device_map, str):
            self.device_map = _infer(skeleton, self.device_map, self.max_memory)
        else:
            _check_paths(self.device_map, skeleton)
        sizes: Counter[str] = Counter()
        for name, tensor in skeleton.state_dict(keep_vars=True).items():
            if name not in skeleton.all_tied_weights_keys:
                sizes[str(self._device_of(name))] += tensor.numel() * tensor.element_size()
        if "None" in sizes:
            left = [name for name in skeleton.state_dict() if self._device_of(name) is None]
            raise ValueError(
                f"`device_map` names no device for {left[0]!r} and {len(left) - 1} other tensors: add their modules, "
                "or '' for all the rest."
            )
        self.device_map = dict(self._disjoint(skeleton, ""))
        _check_accelerators(sizes)
        if DISK in self.device_map.values():
            self._prepare_disk(sizes[DISK], sizes.total())

    def place(self, model: PreTrainedModel) -> None:
        """Moves the packed model from the CPU to where it was planned to go.

        If a disk or device turns out too small, an error is logged and the model stays on the CPU.
        """
        from accelerate.hooks import remove_hook_from_submodules

        if self.device_map is None:
            return
        try:
            self._place(model)
        except (OSError, torch.OutOfMemoryError) as error:
            remove_hook_from_submodules(model)
            _move(model, "cpu")
            logger.error(
                "The packed model stays on the CPU, as it could not be put on `device_map`: %s. It is whole: save it, "
                "and load it with another `device_map`.", error,
            )  # fmt: skip

    def _place(self, model: PreTrainedModel) -> None:
        from accelerate import dispatch_model

        assert isinstance(self.device_map, dict)
        devices = set(map(str, self.device_map.values()))
        if len(devices) == 1 and self.offload is None:
            _move(model, next(iter(self.device_map.values())))
            return
        index = None
        if self.offload is not None:
            offloaded = {name: t for name, t in model.state_dict().items() if self._device_of(name) == DISK}
            index = self.offload.store(offloaded)
            for module in model.modules():  # whichever of them lives longest keeps the folder
                module.qaig_offload = self.offload  # type: ignore[assignment]
        dispatch_model(
            model,
            self.device_map,
            offload_dir=None if self.offload is None else self.offload.path,
            offload_index=index,
            offload_buffers=True,
            skip_keys=model._skip_keys_device_placement,
        )

    def _device_of(self, name: str) -> Device | None:
        """Returns the device of a tensor: that of its own path, else of the nearest path around it, else None."""
        assert isinstance(self.device_map, dict)
        while name and name not in self.device_map:
            name = name.rpartition(".")[0]
        return self.device_map.get(name)

    def _disjoint(self, module: nn.Module, path: str) -> Iterator[tuple[str, Device]]:
        """Yields the same map with no module inside another: Accelerate would treat such a module as two."""
        prefix = f"{path}." if path else ""
        names = [name for name, _ in chain(module.named_parameters(), module.named_buffers())]
        devices = {str(device): device for name in names if (device := self._device_of(prefix + name)) is not None}
        if len(devices) == 1:
            yield path, next(iter(devices.values()))
            return
        for child in dict.fromkeys(name.partition(".")[0] for name in names):
            part = getattr(module, child)
            if isinstance(part, nn.Module):
                yield from self._disjoint(part, prefix + child)
            elif (device := self._device_of(prefix + child)) is not None:
                yield prefix + child, device

    def _prepare_disk(self, size: int, whole: int) -> None:
        if self.offload_folder is None:
            raise ValueError(
                f"{size:,} of the packed model's {whole:,} bytes would go to disk. Give `offload_folder` to "
                "from_pretrained to say where, or a `device_map` or `max_memory` with more room."
            )
        limit = (self.max_memory or {}).get(DISK, math.inf)
        if size > limit:
            raise ValueError(f"{size:,} bytes would go to disk, where `max_memory` allows {limit:,}.")
        self.offload = OffloadFolder(self.offload_folder)
        free = shutil.disk_usage(self.offload.path).free
        if size > free:
            raise ValueError(
                f"`offload_folder`: {size:,} bytes would be written to {self.offload_folder}, which has {free:,} free."
            )
        logger.warning("%s of the packed model's %s bytes go to disk, from where they are slow to read.", size, whole)


def _checked(device_map: Any) -> dict[str, Device]:
    """Returns the map as a dict, with existing devices only."""
    if isinstance(device_map, (str, int, torch.device)):
        device_map = {"": device_map}
    if not isinstance(device_map, Mapping) or not device_map:
        raise ValueError(
            f"`device_map` must be a device, one of {INFERRED}, or map modules to devices; got {quote(device_map)}."
        )
    checked: dict[str, Device] = {}
    for path, device in device_map.items():
        if not isinstance(path, str):
            raise ValueError(f"`device_map` must have paths of modules as keys, got {quote(path)}.")
        if device != DISK:
            check_device(device, f"`device_map[{quote(path)}]`")
        # Accelerate accepts only this name for the CPU.
        checked[path] = "cpu" if not isinstance(device, int) and str(device) in ("cpu", "cpu:0") else device
    return checked


def _infer(skeleton: PreTrainedModel, how: str, max_memory: Mapping[int | str, int] | None) -> dict[str, Device]:
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = list(skeleton._no_split_modules or ())
    # Accelerate treats a disk as endless, or as a device that torch does not have.
    memory = {device: size for device, size in (max_memory or {}).items() if device != DISK} or None
    if how != "sequential":
        low_zero = how == "balanced_low_0"
        memory = get_balanced_memory(skeleton, memory, no_split_module_classes=whole, low_zero=low_zero)
    return infer_auto_device_map(skeleton, max_memory=memory, no_split_module_classes=whole)


def _check_accelerators(sizes: Mapping[str, int]) -> None:
    """Raises `ValueError` if what a GPU is to hold is larger than its memory."""
    for name, size in sizes.items():
        device = torch.device(int(name) if name.isdecimal() else name) if name != DISK else torch.device("cpu")
        if device.type != "cuda":
            continue
        memory = torch.cuda.get_device_properties(device).total_memory
        if size > memory:
            raise ValueError(
                f"`device_map` puts {size:,} bytes of the packed model on {device}, which has {memory:,}: spread it, "
                "as device_map='auto' does, or pack it smaller."
            )


def _check_paths(device_map: Mapping[str, Device], skeleton: nn.Module) -> None:
    """Checks that every path of a device map is in the model: the rest of the map would hide a missing one."""
    known = {name for name, _ in chain(skeleton.named_modules(), skeleton.named_parameters(), skeleton.named_buffers())}
    for path in device_map:
        if path not in known:
            hint = did_you_mean(path, known)
            raise ValueError(f"`device_map` names {quote(path)}, and the model has no such module.{hint}")


def _move(model: Any, device: Device) -> None:
    """Calls `model.to`, whose decorator in Transformers hides its type."""
    model.to(device)
