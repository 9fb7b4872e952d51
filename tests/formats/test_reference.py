import pytest
import torch

from tests.tolerance import assert_close, assert_product
from transformers_qaig.formats import packing, reference
from transformers_qaig.formats.packing import CHECKPOINT_LAYOUT, pack, pack_zero_point
from transformers_qaig.formats.reference import Weight


def random_weight(out_features, in_features, bits, group_size, sym, scale_dtype=torch.float32):
    """(codes, scale, zero) of a random packed weight; zero is None when sym."""
    groups = 1 if group_size == -1 else in_features // group_size
    codes = torch.randint(0, 2**bits, (out_features, in_features), dtype=torch.uint8)
    scale = (torch.rand(out_features, groups) * 0.1 + 0.01).to(scale_dtype)
    zero = None if sym else torch.randint(0, 2**bits, (out_features, groups), dtype=torch.uint8)
    return codes, scale, zero


def dense(codes, scale, zero, bits):
    """The weight by its definition, element by element in float64."""
    group_of = torch.arange(codes.shape[1]) // (codes.shape[1] // scale.shape[1])
    offset = torch.full_like(scale, 2 ** (bits - 1)).double() if zero is None else zero.double()
    return (codes.double() - offset[:, group_of]) * scale.double()[:, group_of]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [8, 24, -1])
@pytest.mark.parametrize("sym", [True, False])
def test_dequantize_is_the_formula(bits, group_size, sym):
    codes, scale, zero = random_weight(5, 48, bits, group_size, sym, torch.bfloat16)
    packed = Weight(
        pack(codes, bits),
        scale,
        None if sym else pack_zero_point(zero, bits),
        5,
        48,
        bits,
        group_size,
        CHECKPOINT_LAYOUT,
    )
    expected = dense(codes, scale, zero, bits)  # exact in float32: 9 bits times 8 bits
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        weight = reference.dequantize(packed, dtype)
        assert weight.dtype == dtype
        assert torch.equal(weight, expected.to(dtype))


@pytest.mark.parametrize("sym", [True, False])
def test_chunks_of_rows_change_nothing_but_the_peak(sym, monkeypatch):
    codes, scale, zero = random_weight(50, 32, 3, 16, sym)
    packed = Weight(pack(codes, 3), scale, None if sym else pack_zero_point(zero, 3), 50, 32, 3, 16, CHECKPOINT_LAYOUT)
    x, grad = torch.randn(4, 32), torch.randn(4, 50)
    weight = reference.dequantize(packed, torch.float32)
    out = reference.linear(x, packed, None, None, 16)
    grad_x = reference.linear_grad_input(grad, packed, None)
    monkeypatch.setattr(packing, "_CHUNK_CODES", 32 * 7)
    assert torch.equal(reference.dequantize(packed, torch.float32), weight)
    assert_close(reference.linear(x, packed, None, None, 16), out, x.shape[-1])
    assert_close(reference.linear_grad_input(grad, packed, None), grad_x, grad.shape[-1])


@pytest.mark.parametrize(
    ("able", "dtype", "product"),
    [
        ({}, torch.bfloat16, torch.float32),
        ({}, torch.float16, torch.float32),
        ({}, torch.float64, torch.float64),
        ({"amx_bf16": True}, torch.bfloat16, torch.bfloat16),
        ({"avx512_bf16": True}, torch.float16, torch.float32),
    ],
)
def test_gradients_are_multiplied_in_half_precision_only_where_the_processor_can(able, dtype, product, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    codes, scale, _ = random_weight(50, 32, 4, 16, True)
    packed = Weight(pack(codes, 4), scale, None, 50, 32, 4, 16, CHECKPOINT_LAYOUT)
    grad, dtypes = torch.randn(4, 50, dtype=dtype), []
    monkeypatch.setattr(
        Weight,
        "rows",
        lambda self, dtype: dtypes.append(dtype) or iter([(0, 50, dense(codes, scale, None, 4).to(dtype))]),
    )
    found = reference.linear_grad_input(grad, packed, None)
    assert dtypes == [product]
    assert found.dtype == dtype
    expected = grad.double() @ dense(codes, scale, None, 4).double()
    assert (found.double() - expected).norm() <= 4 * torch.finfo(dtype).eps * expected.norm()


def test_linear_is_deterministic():
    """Up to what the library that sums it promises."""
    codes, scale, zero = random_weight(64, 96, 4, 32, False)
    packed = Weight(pack(codes, 4), scale, pack_zero_point(zero, 4), 64, 96, 4, 32, CHECKPOINT_LAYOUT)
    args = torch.randn(3, 96), packed, torch.randn(64), None, 16
    assert_close(reference.linear(*args), reference.linear(*args), 96)


def test_8_bit_activations_are_rounded_per_token():
    codes, scale, zero = random_weight(6, 32, 4, 32, False)
    packed = Weight(pack(codes, 4), scale, pack_zero_point(zero, 4), 6, 32, 4, 32, CHECKPOINT_LAYOUT)
    x = torch.randn(3, 32)
    x[1] = 0
    x[2, 3] = torch.inf
    step = x.abs().amax(-1).clamp(min=1e-5) / 127
    rounded = torch.stack([torch.round(x[0] / step[0]) * step[0], x[1], x[2]])
    out = reference.linear(x, packed, None, None, 8)
    assert_product(out, rounded, dense(codes, scale, zero, 4))
    assert not torch.equal(out[0], reference.linear(x, packed, None, None, 16)[0])
