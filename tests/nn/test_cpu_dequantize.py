"""The compiled CPU kernels that turn codes back into weights, against plain torch."""

import pytest
import torch

from tests.nn.cpu_layers import BITS, random_layer
from tests.nn.rounding_errors import ROUNDING, error
from transformers_qaig.formats import reference
from transformers_qaig.formats.reference import dequantize
from transformers_qaig.kernels import extension

pytestmark = pytest.mark.skipif(not extension.load(), reason=f"no compiled kernels: {extension.why_not()}")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sym", [False, True])
def test_rows_are_dequantized_to_the_bit(isa, bits, sym):
    for in_features, group_size in ((96, 32), (96, -1), (80, 20), (104, 104), (72, 36)):
        layer = random_layer(bits, group_size, sym, in_features=in_features)
        expected = dequantize(layer._weight(), torch.float32)  # plain torch: it is in the checkpoint layout
        assert layer.to_kernel_layout()
        for start, stop in ((0, 40), (5, 33), (16, 32), (39, 40)):
            assert torch.equal(torch.ops.qaig.dequantize(*layer._weight(), start, stop), expected[start:stop])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sym", [False, True])
def test_columns_are_dequantized_to_the_bit(isa, bits, sym):
    for in_features, group_size in ((96, 32), (96, -1), (80, 20), (104, 104), (72, 36)):
        layer = random_layer(bits, group_size, sym, in_features=in_features)
        layer.weight_scale[3] = 1e-39  # a denormal number in bfloat16
        expected = dequantize(layer._weight(), torch.bfloat16)  # plain torch: it is in the checkpoint layout
        for _ in range(2):
            for start, stop in ((0, in_features), (5, 33), (32, 64), (in_features - 1, in_features), (7, 7)):
                found = torch.ops.qaig.dequantize_columns(*layer._weight(), start, stop)
                assert torch.equal(found, expected[:, start:stop])
            layer.to_kernel_layout()


@pytest.mark.parametrize("bits", BITS)
def test_columns_of_scales_that_are_not_finite_are_those_of_plain_torch(isa, bits):
    layer = random_layer(bits, 32, False, in_features=96)
    layer.weight_scale = layer.weight_scale.float()
    layer.weight_scale[3, 1], layer.weight_scale[9, 0] = torch.inf, 3e38
    layer.weight_scale[20, 2:] = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)  # rounding overflows
    expected = dequantize(layer._weight(), torch.bfloat16)
    assert not expected.isfinite().all()
    assert layer.to_kernel_layout()
    found = torch.ops.qaig.dequantize_columns(*layer._weight(), 0, 96)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("chunk_codes", [1, 1 << 20])
@pytest.mark.parametrize("bits", BITS)
def test_the_gradient_in_bfloat16_is_rounded_once(isa, bits, chunk_codes, monkeypatch):
    """Whatever a processor multiplies fastest: panels of 32 columns or one of all, and a product in bfloat16."""
    monkeypatch.setattr(reference, "product_dtype", lambda x: x.dtype)
    monkeypatch.setattr("transformers_qaig.formats.packing._CHUNK_CODES", chunk_codes)
    layer = random_layer(bits, in_features=160)
    grad = torch.randn(9, 40).bfloat16()
    weight = dequantize(layer._weight(), torch.bfloat16)
    assert layer.to_kernel_layout()
    found = reference.linear_grad_input(grad, layer._weight(), None)
    assert error(found, grad.double() @ weight.double()) < ROUNDING[torch.bfloat16]
