import pytest
import torch
from torch import nn

from tests import seeds
from tests.tolerance import rounding
from transformers_qaig.execution.learned_scales import frozen_parameters, learning_scales
from transformers_qaig.formats.hadamard import Rotation, rotate
from transformers_qaig.nn.linear import QAIGLinear
from transformers_qaig.rounding.quant_grid import fake_quantize_tokens

N, K, GROUP = 24, 64, 32
CASES = [(2, False, False, 16), (3, True, False, 16), (8, False, False, 16), (8, True, False, 16), (4, False, True, 8)]


def _layer(bits: int, sym: bool, rotated: bool, activation_bits: int) -> QAIGLinear:
    generator = seeds.generator()
    codes = torch.randint(0, 2**bits, (N, K), generator=generator, dtype=torch.uint8)
    zero = None if sym else torch.randint(0, 2**bits, (N, K // GROUP), generator=generator, dtype=torch.uint8)
    scale = torch.rand(N, K // GROUP, generator=generator).to(torch.bfloat16) + 0.1
    return QAIGLinear.from_codes(
        codes,
        scale,
        zero,
        torch.randn(N, generator=generator).to(torch.bfloat16),
        bits=bits,
        group_size=GROUP,
        activation_bits=activation_bits,
        rotation=Rotation(32, 5) if rotated else None,
    )


@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_the_layer_computes_and_its_gradients(case: tuple[int, bool, bool, int]) -> None:
    layer = _layer(*case)
    model = nn.Sequential(layer)
    x = torch.randn(2, 5, K, generator=seeds.generator(1))
    factor = torch.ones(N, K // GROUP, requires_grad=True)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    with learning_scales(model, {"0": layer}, lambda codes: codes) as scaled:
        assert not dict(model.named_parameters()).keys() - {"0.bias"}
        torch.testing.assert_close(model(x), layer(x), rtol=0, atol=rounding(torch.float32, K) * 2.0 ** case[0] * 10)
        leaf = scaled["0"].scale.clone().requires_grad_()
        scaled["0"].scale = leaf
        model(inputs[0]).square().sum().backward()
    assert model[0] is layer
    rotated = inputs[1] if layer.rotation is None else rotate(inputs[1], layer.rotation)
    treated = fake_quantize_tokens(rotated) if layer.activation_bits == 8 else rotated
    dense = super(QAIGLinear, layer).dequantize(torch.float32)
    weight = (dense.view(N, -1, GROUP) * factor.unsqueeze(-1)).view(N, K)
    (treated @ weight.T + layer.bias.float()).square().sum().backward()
    wanted = factor.grad / layer.weight_scale.float()
    torch.testing.assert_close(leaf.grad, wanted, rtol=1e-4, atol=float(wanted.abs().max()) * 1e-5)
    close = inputs[1].grad
    torch.testing.assert_close(inputs[0].grad, close, rtol=1e-4, atol=float(close.abs().max()) * 1e-5)


def test_parameters_are_frozen_within_the_context_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False))
    with frozen_parameters(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, False, False]
