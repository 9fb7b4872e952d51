"""DoRA beside a packed layer: norms of the rows of W + s B A, without W.

    ||w + s b A||^2 = ||w||^2 + 2 s <b, A w> + s^2 b A A' b'

The first term is constant, and computed once, some rows at a time. `A w` is the packed layer's product with the r rows
of A. So a step costs a product with r more tokens, where PEFT's own DoRA makes two dense matrices of W's size.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn

from ...nn.linear import QAIGLinear


class PackedDoraLayer(DoraLinearLayer):
    """The magnitudes of a DoRA adapter on a packed layer, or on the dense one that `model.dequantize()` made of it."""

    weight: nn.Parameter
    _squares: Tensor | None = None

    def update_layer(
        self, *, base_layer: nn.Module, lora_A: Tensor, lora_B: Tensor, scaling: float, place_on_cpu: bool = False
    ) -> None:
        """Sets the magnitudes to the norms of the rows, as PEFT does. Arguments as PEFT passes them."""
        assert isinstance(base_layer, QAIGLinear)
        if lora_A.is_meta:
            norms = torch.empty(base_layer.out_features, device="meta")
        else:
            norms = self.row_norms(base_layer, lora_A, lora_B, scaling)
        self.weight = nn.Parameter(norms.cpu() if place_on_cpu else norms)

    def forward(
        self,
        x: Tensor,
        *,
        lora_A: nn.Linear,
        lora_B: nn.Linear,
        scaling: float,
        base_layer: nn.Module,
        base_result: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Computes what DoRA adds to the output of the base layer.

        Args:
            x: `[..., K]`, after dropout.
            lora_A: A.
            lora_B: B.
            scaling: s.
            base_layer: the packed layer.
            base_result: its output for x; None to compute it.
            kwargs: what else PEFT passes.
        """
        if not isinstance(base_layer, QAIGLinear):
            given = {"lora_A": lora_A, "lora_B": lora_B, "scaling": scaling, "base_layer": base_layer}
            return super().forward(x, **given, base_result=base_result, **kwargs)
        # As PEFT has it, the norm has no gradient (section 4.3 of the paper).
        norms = self.row_norms(base_layer, lora_A.weight, lora_B.weight, scaling)
        ratio = self.weight / norms.to(self.weight.dtype)
        result = base_layer(x) if base_result is None else base_result
        if base_layer.bias is not None:
            result = result - base_layer.bias
        return (ratio - 1) * result + ratio * lora_B(lora_A(x)) * scaling

    @torch.no_grad()
    def row_norms(self, layer: QAIGLinear, lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
        """Computes the norms of the rows of W + s B A, float32 `[N]`.

        Args:
            layer: the packed layer, of W.
            lora_A: `[r, K]`.
            lora_B: `[N, r]`.
            scaling: s.
        """
        if self._squares is None or self._squares.device != layer.device:
            self._squares = layer.row_squares()
        inner, outer = lora_A.float(), lora_B.float() * scaling
        products = layer.product(inner).T
        added = (outer * (2 * products + outer @ (inner @ inner.T))).sum(1)
        return (self._squares + added).clamp(min=0).sqrt()


class PackedDoraVariant(DoraLinearVariant):
    """DoRA as a variant of LoRA, with the magnitudes of a packed layer."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """Adds the magnitudes of an adapter to its layer.

        Args:
            module: a LoRA layer.
            adapter_name: of an adapter that has its A and B.
            kwargs: what else PEFT passes.
        """
        if not module.lora_magnitude_vector:
            module.adapter_layer_names = (*module.adapter_layer_names, "lora_magnitude_vector")
        layer = PackedDoraLayer(fan_in_fan_out=False)
        factors = module.lora_A[adapter_name].weight, module.lora_B[adapter_name].weight
        layer.update_layer(
            base_layer=module.get_base_layer(),
            lora_A=factors[0],
            lora_B=factors[1],
            scaling=module.scaling[adapter_name],
        )
        module.lora_magnitude_vector[adapter_name] = layer
