"""Lets Accelerate move packed layers of a loaded model: `cpu_offload`, `dispatch_model`, `load_checkpoint_in_model`.

Once Accelerate's hooks are imported, this module is ([`transformers_qaig_autoload.when_imported`]).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any

from accelerate.hooks import AlignDevicesHook
from accelerate.utils import modeling
from torch import nn

from ..formats.packing import CHECKPOINT_LAYOUT
from ..nn.packed_tensors import PackedTensors


def support_packed_layers() -> None:
    """Makes Accelerate find packed layers in the checkpoint layout wherever it sets their tensors one by one."""
    AlignDevicesHook.init_hook = _on_packed(AlignDevicesHook.init_hook)
    load = modeling.load_checkpoint_in_model

    @functools.wraps(load)
    def load_packed(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        layers = _in_checkpoint_layout(model.modules())
        result = load(model, *args, **kwargs)
        for layer in layers:
            layer.to_kernel_layout()  # not one that has gone to disk
        return result

    for name, module in list(sys.modules.items()):  # a copy: other threads may import
        if name.partition(".")[0] == "accelerate" and vars(module).get("load_checkpoint_in_model") is load:
            module.load_checkpoint_in_model = load_packed  # type: ignore[attr-defined]


def _on_packed(init_hook: Callable[[AlignDevicesHook, nn.Module], nn.Module]) -> Any:
    """Returns `init_hook`, which prepares a module for moving, for modules that may be packed.

    Accelerate saves a model's `state_dict`, which holds the checkpoint layout, and later sets the saved tensors. A
    layer whose tensors stay in memory gets its kernels' layout back, on its new device.
    """

    @functools.wraps(init_hook)
    def init_packed(self: AlignDevicesHook, module: nn.Module) -> nn.Module:
        layers = _in_checkpoint_layout(module.modules() if self.place_submodules else (module,))
        module = init_hook(self, module)
        for layer in layers:
            if not self.offload:
                layer.to_kernel_layout()
        return module

    return init_packed


def _in_checkpoint_layout(modules: Iterable[nn.Module]) -> list[PackedTensors]:
    """Brings packed layers to the checkpoint layout, and returns those that were in another."""
    layers = [layer for layer in modules if isinstance(layer, PackedTensors) and layer.layout != CHECKPOINT_LAYOUT]
    for layer in layers:
        layer.to_checkpoint_layout()
    return layers


support_packed_layers()
