"""Packed layers that compute from scales of their own, for the gradient of these; their codes stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..formats.hadamard import rotate
from ..formats.packing import unpack, unpack_zero_point
from ..nn.linear import QAIGLinear
from ..rounding.quant_grid import fake_quantize_tokens

Keep = Callable[[Tensor], Tensor]


class ScaledLinear(nn.Module):
    """Computes what a packed layer computes, in float32, with `scale` in the place of the layer's scales.

    Gradients reach `scale` and the input. They go straight through the rounding of an input to 8 bits. Neither the
    weight nor its gradient outlives a call. Codes and scales are no parameters: a copy of the block holds none.

    Args:
        layer: in the checkpoint layout, on the CPU.
        keep: returns the codes where they are to be kept.

    Attributes:
        scale: fp32 [N, G], on the CPU.
    """

    def __init__(self, layer: QAIGLinear, keep: Keep):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._rotation, self._rounds = layer.rotation, layer.activation_bits == 8
        self._stand_in = layer.weight
        self.scale = layer.weight_scale.detach().float()
        self._centred_codes = keep(_centred_codes(layer))
        self.register_parameter("bias", layer.bias)

    @property
    def weight(self) -> Tensor:
        """An empty tensor that shows the dtype to models that ask for it."""
        return self._stand_in

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies the input by the weight and adds the bias."""
        transformed = x.float() if self._rotation is None else rotate(x.float(), self._rotation)
        transformed = fake_quantize_tokens(transformed) if self._rounds else transformed
        product = _Product.apply(transformed, self.scale.to(x.device), self._centred_codes)
        return (product if self.bias is None else product + self.bias.float()).to(x.dtype)


class _Product(torch.autograd.Function):
    """x Wᵀ with W = centred_codes * scale, which is made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, centred_codes: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.centred_codes = centred_codes
        return x @ _weight(scale, centred_codes).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, scale = ctx.saved_tensors
        centred_codes = ctx.centred_codes
        along_x = gradient @ _weight(scale, centred_codes) if ctx.needs_input_grad[0] else None
        along_weight = gradient.reshape(-1, gradient.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        along_scale = (along_weight.view(centred_codes.shape) * centred_codes.to(x.device)).sum(-1)
        return along_x, along_scale, None


def _weight(scale: Tensor, centred_codes: Tensor) -> Tensor:
    return (centred_codes.to(scale.device) * scale.unsqueeze(-1)).flatten(1)


def _centred_codes(layer: QAIGLinear) -> Tensor:
    """Returns code minus zero point, int8 [N, G, K / G]; int16 for 8 bits, which can differ by 255."""
    rows, groups = layer.weight_scale.shape
    codes = unpack(layer.weight_packed, layer.bits, layer.in_features).view(rows, groups, -1).to(torch.int16)
    if layer.weight_zero_point is None:
        codes -= 2 ** (layer.bits - 1)
    else:
        codes -= unpack_zero_point(layer.weight_zero_point, layer.bits, rows).unsqueeze(-1).to(torch.int16)
    return codes if layer.bits == 8 else codes.to(torch.int8)


@contextmanager
def learning_scales(
    model: nn.Module, layers: Mapping[str, QAIGLinear], keep: Keep
) -> Iterator[dict[str, ScaledLinear]]:
    """Puts a [`ScaledLinear`] in the place of each of some packed layers, within the context.

    Args:
        model: that holds them.
        layers: by path.
        keep: see [`ScaledLinear`].

    Yields:
        the layers in their places, by path.
    """
    with ExitStack() as stack:
        scaled = {}
        for path, layer in layers.items():
            scaled[path] = ScaledLinear(layer, keep)
            stack.callback(model.set_submodule, path, layer)
            model.set_submodule(path, scaled[path])
        yield scaled


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """Makes the parameters of a model need no gradients, within the context."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
