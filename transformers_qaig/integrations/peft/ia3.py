"""IA3 beside a packed layer."""

from __future__ import annotations

from typing import Any

from peft.tuners.ia3.config import IA3Config
from peft.tuners.ia3.layer import IA3Layer, Linear
from torch import nn

from ...nn.linear import QAIGLinear
from .lora import check_dense


class QAIGIA3Linear(Linear):
    """Learned factors of a packed layer's input or output; PEFT's own forward pass applies them."""

    def __init__(
        self, base_layer: QAIGLinear, adapter_name: str, config: IA3Config, is_feedforward: bool = False, **kwargs: Any
    ) -> None:
        nn.Module.__init__(self)
        # IA3Layer reads the sizes off a dense layer.
        sizes = nn.Linear(base_layer.in_features, base_layer.out_features, device="meta")
        IA3Layer.__init__(self, sizes, is_feedforward=is_feedforward, **kwargs)
        self.base_layer = base_layer
        self.fan_in_fan_out = self.is_target_conv_1d_layer = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config=config)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merges into a dense layer.

        Raises:
            NotImplementedError: the layer is packed.
        """
        check_dense(self.get_base_layer())
        super().merge(safe_merge, adapter_names)
