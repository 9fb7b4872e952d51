"""The gradient of a packed layer's input in the CUDA layout: the weight is unpacked by the kernel on the emulator."""

import pytest
import torch
from torch import Tensor

from tests.kernels.cuda.products import ROUNDING, error, in_checkpoint_layout
from tools.emulator.compilation import COMPILER
from tools.emulator.weights import random_weight
from transformers_qaig.formats import packing, reference

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.usefixtures("operators"),
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_panel_of_the_weight_is_unpacked_at_a_time(dtype, monkeypatch):
    w, panels = random_weight(4, 150, 96, 32), []

    def dequantize(*arguments: object) -> Tensor:
        panels.append(arguments[-2:])
        return torch.ops.qaig_emulated.dequantize(*arguments)

    monkeypatch.setattr(torch.ops.qaig, "dequantize", dequantize)
    monkeypatch.setattr(packing, "_CHUNK_CODES", 64 * 96)
    grad = torch.randn(5, 150).to(dtype)
    weight = reference.Weight(w.words, w.scale, w.zero, 150, 96, 4, 32, packing.CUDA_LAYOUT)
    found = reference.linear_grad_input(grad, weight, None)
    assert panels == [(0, 64), (64, 128), (128, 150)]
    assert found.dtype == dtype
    dense = reference.dequantize(in_checkpoint_layout(w), dtype).double()
    assert error(found, grad.double() @ dense) < 2 * ROUNDING.get(dtype, 1e-5)
