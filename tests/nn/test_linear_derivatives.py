"""Gradients and tangents through a packed linear layer."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from tests.nn.random_layers import K, N, random_layer
from tests.nn.rounding_errors import ROUNDING, error
from tests.tolerance import assert_close, assert_product
from transformers_qaig.formats.reference import linear_grad_input


def test_gradient_passes_through_to_trainable_layers():
    model, x = nn.Sequential(nn.Linear(K, K), random_layer()), torch.randn(2, K)
    model(x).square().sum().backward()
    weight = model[0].weight.detach().clone().requires_grad_()
    hidden = nn.functional.linear(x, weight, model[0].bias.detach())
    nn.functional.linear(hidden, model[1].dequantize(), model[1].bias).square().sum().backward()
    assert_close(model[0].weight.grad, weight.grad, K + K + N)
    assert model[1].weight_scale.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_input_needs_no_dense_copy_of_the_weight(dtype: torch.dtype) -> None:
    layer = random_layer(out_features=4096, in_features=2048, dtype=torch.bfloat16)
    grad, largest = torch.randn(2, 4096, dtype=dtype), [0]

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest[0] = max(largest[0], result.nbytes)
            return result

    for _ in range(2):
        with Sizes():
            found = linear_grad_input(grad, layer._weight(), None)
        expected = grad.float() @ layer.dequantize(dtype).float()
        assert error(found, expected) < max(ROUNDING[dtype], 4096**0.5 * torch.finfo(torch.float32).eps)
        assert largest[0] <= layer.dequantize(torch.bfloat16).nbytes // 2
        layer.to_kernel_layout()


@pytest.mark.parametrize("activation_bits", [16, 8])
def test_forward_mode_derivatives_are_those_of_the_dense_layer(activation_bits: int) -> None:
    layer = random_layer()
    layer.activation_bits = activation_bits
    x, v, v_bias = torch.randn(5, K), torch.randn(5, K), torch.randn(N)
    _, along_x = torch.func.jvp(layer, (x,), (v,))
    assert_product(along_x, v, layer.dequantize(), None)
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, v))).tangent
    assert torch.equal(tangent, along_x)

    def of_bias(bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"bias": bias}, (x,))

    _, along_bias = torch.func.jvp(of_bias, (layer.bias.detach(),), (v_bias,))
    torch.testing.assert_close(along_bias, v_bias.expand(5, N))


def test_a_tangent_of_the_packed_weight_is_refused() -> None:
    layer = random_layer()
    scale = layer.weight_scale.detach()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(scale, torch.ones_like(scale))
        with pytest.raises(NotImplementedError, match="packed weight is a constant"):
            torch.func.functional_call(layer, {"weight_scale": dual}, (torch.randn(1, K),))
