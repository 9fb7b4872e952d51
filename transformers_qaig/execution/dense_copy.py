"""A packed block as it runs on an accelerator during calibration: its weights dequantized once, not at every call."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn

from ..formats.hadamard import rotate
from ..formats.reference import round_activations
from ..nn.linear import QAIGLinear
from ..nn.packed_module import PackedModule

MAX_BYTES = 2**33
"""The most that the dense weights of a block may take; a larger block (of many experts) runs packed."""


class DenseLinear(nn.Linear):
    """A packed layer's dense weight, with the layer's treatment of its input: the arithmetic of the reference."""

    def __init__(self, layer: QAIGLinear):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self._rotation, self._rounds = layer.rotation, layer.activation_bits == 8
        treated = self._rotation is not None or self._rounds
        # Not the layer's own, which rotates the weight back.
        weight = PackedModule.dequantize(layer, torch.float32 if treated else layer.compute_dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies the input by the dense weight and adds the bias."""
        treated = x if self._rotation is None else rotate(x.float(), self._rotation)
        treated = round_activations(treated) if self._rounds else treated
        bias = None if self.bias is None else self.bias.to(treated.dtype)
        return nn.functional.linear(treated, self.weight.to(treated.dtype), bias).to(x.dtype)


def dense_copy(block: nn.Module) -> nn.Module:
    """Returns the block with its packed linears dequantized, all other tensors shared; itself on the CPU.

    The CPU's kernels read words in the order of the checkpoint. An accelerator's do not, and the reference in plain
    torch, which does, takes thousands of launches a call.
    """
    packed = {name: module for name, module in block.named_modules() if type(module) is QAIGLinear}
    size = sum(layer.in_features * layer.out_features * layer.compute_dtype.itemsize for layer in packed.values())
    if size > MAX_BYTES or not packed or next(iter(packed.values())).device.type == "cpu":
        return block
    if "" in packed:
        return DenseLinear(packed[""])
    shared: dict[int, object] = {id(tensor): tensor for tensor in chain(block.parameters(), block.buffers())}
    dense = copy.deepcopy(block, shared)
    for name, layer in packed.items():
        dense.set_submodule(name, DenseLinear(layer))
    return dense
