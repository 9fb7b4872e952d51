"""Makes a packed block fast during calibration: in the kernel layout on a CPU, as a dense copy on an accelerator."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from ..formats.hadamard import rotate
from ..formats.reference import round_activations
from ..nn.linear import QAIGLinear
from ..nn.packed_module import PackedModule
from ..nn.packed_tensors import PackedTensors
from ..nn.transformed_input import TransformedInputLinear

MAX_BYTES = 2**33
"""The most that the dense weights of a block may take; a larger block (of many experts) runs packed."""


def dense_linear(layer: QAIGLinear) -> nn.Linear:
    """Returns a dense linear that transforms its input as the layer does: the arithmetic of the reference."""
    rotation, rounds = layer.rotation, layer.activation_bits == 8

    def transform(x: Tensor) -> Tensor:
        transformed = x if rotation is None else rotate(x.float(), rotation)
        return round_activations(transformed) if rounds else transformed

    dtype = torch.float32 if rotation is not None or rounds else layer.compute_dtype
    # Not the layer's own `dequantize`, which rotates the weight back.
    return TransformedInputLinear(PackedModule.dequantize(layer, dtype), layer.bias, transform)


@contextmanager
def fast_to_run(block: nn.Module) -> Iterator[nn.Module]:
    """Yields a packed block in the form that runs fast, within the context.

    On the CPU that is the block itself, with its weights in the layout of the kernels: results are the same to the bit,
    and three to twenty times as fast as in the order of the checkpoint. See [`dense_copy`] for accelerators.
    """
    packed = [module for module in block.modules() if isinstance(module, PackedTensors)]
    if not packed or packed[0].device.type != "cpu":
        yield dense_copy(block)
        return
    try:
        for module in packed:
            module.to_kernel_layout()
        yield block
    finally:
        for module in packed:
            module.to_checkpoint_layout()


def dense_copy(block: nn.Module) -> nn.Module:
    """Returns the block with its packed linears dequantized, all other tensors shared; itself if it is too large.

    An accelerator's kernels do not read words in the order of the checkpoint, and the reference in plain torch, which
    does, takes thousands of launches a call.
    """
    packed = {name: module for name, module in block.named_modules() if type(module) is QAIGLinear}
    size = sum(layer.in_features * layer.out_features * layer.compute_dtype.itemsize for layer in packed.values())
    if size > MAX_BYTES or not packed:
        return block
    if "" in packed:
        return dense_linear(packed[""])
    shared: dict[int, object] = {id(tensor): tensor for tensor in chain(block.parameters(), block.buffers())}
    dense = copy.deepcopy(block, shared)
    for name, layer in packed.items():
        dense.set_submodule(name, dense_linear(layer))
    return dense
