"""`torch.ops.qaig.linear` as torch sees it: values, gradients, autocast, compile rules and what it refuses.

Which backend answers is the machine's business; `test_cpu_kernels.py` compares the kernels with the reference.
"""

import pytest
import torch

from tests.tolerance import assert_close, assert_product
from transformers_qaig.formats.hadamard import Rotation, rotate_back
from transformers_qaig.formats.packing import pack, pack_zero_point
from transformers_qaig.formats.reference import Weight, dequantize
from transformers_qaig.nn import ops

N, K, GROUP = 40, 96, 32


def arguments(bits=3, group_size=GROUP, sym=False, bias=True, dtype=torch.float32, rows=(5,), rotation=(0, 0)):
    """Positional arguments of `qaig::linear` for a random layer [40, 96]."""
    groups = 1 if group_size == -1 else K // group_size
    codes = torch.randint(0, 2**bits, (N, K), dtype=torch.uint8)
    zero = None if sym else pack_zero_point(torch.randint(0, 2**bits, (N, groups), dtype=torch.uint8), bits)
    scale = torch.rand(N, groups) * 0.1 + 0.01
    x = torch.randn(*rows, K).to(dtype)
    return [
        x,
        pack(codes, bits),
        scale,
        zero,
        torch.randn(N).to(dtype) if bias else None,
        *rotation,
        N,
        bits,
        group_size,
        16,
        0,
    ]


def weight_of(args, dtype):
    _, packed, scale, zero, _, block, seed, out_features, bits, group_size, _, layout = args
    weight = dequantize(Weight(packed, scale, zero, out_features, K, bits, group_size, layout), dtype)
    return rotate_back(weight, Rotation(block, seed)).to(dtype) if block else weight


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("group_size", [GROUP, -1])
@pytest.mark.parametrize("rotation", [(0, 0), (32, 5)])
def test_equals_the_dense_layer(bits, sym, group_size, rotation):
    args = arguments(bits, group_size, sym, rotation=rotation)
    out = torch.ops.qaig.linear(*args)
    assert_product(out, args[0], weight_of(args, torch.float32), args[4])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_result_has_the_dtype_of_x(dtype):
    args = arguments(dtype=dtype)
    args[4] = args[4].float()
    out = torch.ops.qaig.linear(*args)
    assert out.dtype == dtype
    assert_product(out, args[0], weight_of(args, torch.promote_types(dtype, torch.float32)), args[4], weight_in=dtype)


@pytest.mark.parametrize("rows", [(), (0,), (1,), (2, 0, 3), (2, 3, 4)])
def test_any_leading_dimensions(rows):
    args = arguments(rows=rows)
    out = torch.ops.qaig.linear(*args)
    assert out.shape == (*rows, N)
    assert out.is_contiguous()
    assert_product(out, args[0], weight_of(args, torch.float32), args[4])


def test_strided_input():
    args = arguments(rows=(4, 6))
    expected = torch.ops.qaig.linear(*args).transpose(0, 1)
    args[0] = args[0].transpose(0, 1)
    assert_close(torch.ops.qaig.linear(*args), expected, K)
    args[0] = args[0].repeat(1, 1, 2)[..., ::2].contiguous().repeat_interleave(2, -1)[..., ::2]
    assert not args[0].is_contiguous()
    assert_product(torch.ops.qaig.linear(*args), args[0], weight_of(args, torch.float32), args[4])


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rotation", [(0, 0), (16, 7)])
def test_gradients_equal_the_dense_ones(sym, bias, rotation):
    args = arguments(sym=sym, bias=bias, rows=(2, 5), rotation=rotation)
    leaves = [tensor.requires_grad_() for tensor in (args[0], args[4]) if tensor is not None]
    dense = torch.nn.functional.linear(args[0], weight_of(args, torch.float32), args[4])
    grad = torch.randn_like(dense)
    ours, theirs = (torch.autograd.grad(y, leaves, grad) for y in (torch.ops.qaig.linear(*args), dense))
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other, N)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("op", [torch.ops.qaig.linear, torch.ops.qaig.linear_reference])
def test_no_rows_have_no_rows_and_an_empty_gradient(op, dtype):
    args = arguments(rows=(0,), rotation=(32, 5), bias=False)
    args[0] = args[0].to(dtype).requires_grad_(op is torch.ops.qaig.linear)
    out = op(*args)
    assert (out.shape, out.dtype) == ((0, N), dtype)
    if args[0].requires_grad:
        out.sum().backward()
        assert args[0].grad.shape == (0, K)


@pytest.mark.parametrize("rotation", [(0, 0), (32, 1)])
def test_gradcheck_to_second_order(rotation):
    args = arguments(dtype=torch.float64, rows=(2,), rotation=rotation)
    args[0].requires_grad_()
    args[4].requires_grad_()

    def layer(x, bias):
        return torch.ops.qaig.linear(x, *args[1:4], bias, *args[5:])

    assert torch.autograd.gradcheck(layer, (args[0], args[4]))
    assert torch.autograd.gradgradcheck(layer, (args[0], args[4]))


def test_no_gradient_graph_without_a_trainable_input():
    assert not torch.ops.qaig.linear(*arguments()).requires_grad


def test_a_trainable_scale_is_refused():
    args = arguments()
    args[2].requires_grad_()
    with pytest.raises(NotImplementedError, match="scale requires a gradient"):
        torch.ops.qaig.linear(*args).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_opcheck(dtype, sym, requires_grad):
    args = arguments(dtype=dtype, sym=sym, bias=not sym, rows=(2, 3), rotation=(16, 3) if sym else (0, 0))
    args[0].requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.qaig.linear.default, tuple(args))
    grad = torch.randn(2, 3, N, dtype=dtype, requires_grad=requires_grad)
    torch.library.opcheck(
        torch.ops.qaig.linear_grad_input.default, (grad, *args[1:4], *args[5:7], K, *args[8:10], args[11])
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_the_input_only(dtype):
    args = arguments()
    expected = torch.ops.qaig.linear(args[0].to(dtype), *args[1:])
    with torch.autocast("cpu", dtype=dtype):
        out = torch.ops.qaig.linear(*args)
        double = torch.ops.qaig.linear(args[0].double(), *args[1:])
    assert out.dtype == dtype
    assert torch.equal(out, expected)
    assert double.dtype == torch.float64


def test_autocast_gradients_come_back_in_the_dtype_of_x():
    args = arguments()
    args[0].requires_grad_()
    args[4].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.ops.qaig.linear(*args).sum().backward()
    assert args[0].grad.dtype == torch.float32
    assert args[4].grad.dtype == torch.float32
    torch.testing.assert_close(args[4].grad, torch.full((N,), 5.0))


def test_meta_tensors_have_the_right_shape():
    args = [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in arguments(rows=(2, 3))]
    out = torch.ops.qaig.linear(*args)
    assert out.shape == (2, 3, N)
    assert out.device.type == "meta"


def replaced(position, value):
    args = arguments()
    args[position] = value
    return args


def rotated(block, seed):
    return arguments(rotation=(block, seed))


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (replaced(0, torch.zeros(5, K, dtype=torch.int32)), ValueError, "x must be a floating tensor"),
        (replaced(0, torch.zeros(5, 64)), ValueError, r"packed must have shape \(40, 6\), got \(40, 9\)"),
        (replaced(0, torch.zeros(5, 80)), ValueError, "group_size must be -1 .* or divide in_features=80"),
        (replaced(1, torch.zeros(N, 8, dtype=torch.int32)), ValueError, r"packed must have shape \(40, 9\)"),
        (replaced(1, torch.zeros(N, 9)), ValueError, "packed must have dtype int32"),
        (
            replaced(1, torch.zeros(N, 9, dtype=torch.int32, device="meta")),
            ValueError,
            "packed(?: tensor)? is (on meta|not on the CPU) but the input is",
        ),
        (replaced(2, torch.zeros(N, 2)), ValueError, r"scale must have shape \(40, 3\), got \(40, 2\)"),
        (replaced(2, torch.zeros(N, 3, dtype=torch.float64)), ValueError, "scale must have dtype"),
        (replaced(3, torch.zeros(3, 3, dtype=torch.int32)), ValueError, r"zero must have shape \(4, 3\)"),
        (replaced(3, torch.zeros(4, 3)), ValueError, "zero must have dtype int32"),
        (replaced(4, torch.zeros(N + 1)), ValueError, r"bias must have shape \(40,\)"),
        (replaced(5, 8), ValueError, "block must be one of .* that divides in_features=96, got 8"),
        (replaced(5, 64), ValueError, "block must be one of .* that divides in_features=96, got 64"),
        (replaced(5, -32), ValueError, "got -32"),
        (replaced(5, 512), ValueError, "got 512"),
        (rotated(32, -1), ValueError, "seed must be between 0 and"),
        (replaced(7, N + 1), ValueError, r"packed must have shape \(41, 9\)"),
        (replaced(8, 4), ValueError, r"packed must have shape \(40, 12\)"),
        (replaced(8, 9), ValueError, "bits must be between 2 and 8, got 9"),
        (replaced(9, 16), ValueError, r"scale must have shape \(40, 6\)"),
        (replaced(10, 4), NotImplementedError, "activation_bits=4"),
        (replaced(11, 2), NotImplementedError, "layout=2"),
        (replaced(7, 2**40), ValueError, "packed must have shape|out_features"),
        (replaced(9, 0), ValueError, "group_size"),
    ],
)
def test_untrusted_arguments_are_refused_by_name(args, error, message):
    with pytest.raises(error, match=message):
        torch.ops.qaig.linear_reference(*args)
    with pytest.raises((error, RuntimeError), match=message):  # C++ has one kind of error
        torch.ops.qaig.linear(*args)


FOREIGN = {
    "sparse_coo": (lambda t: t.to_sparse(), "to_dense"),
    "sparse_csr": (lambda t: t.to_sparse_csr(), "to_dense"),
    "_mkldnn": (lambda t: t.float().to_mkldnn(), "to_dense"),
    "quantized": (lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.quint8), "dequantize"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize(("position", "name"), [(0, "x"), (1, "packed"), (2, "scale"), (3, "zero"), (4, "bias")])
def test_a_tensor_that_is_not_dense_is_refused_by_name(kind, position, name):
    """Torch has no kernel of ours for them, so it asks for the device's again and again."""
    args = arguments()
    convert, remedy = FOREIGN[kind]
    if kind == "sparse_csr" and args[position].dim() == 1:
        pytest.skip("needs two dimensions")
    args[position] = convert(args[position])
    x, packed, scale, zero, bias, *sizes = args
    lists = [[value] for value in (packed, scale, zero, bias, *sizes[:5])]
    calls = [
        lambda: torch.ops.qaig.linear(*args),
        lambda: torch.ops.qaig.linear_reference(*args),
        lambda: torch.ops.qaig.linear_many(x, *lists, *sizes[5:]),
    ]
    if name not in ("x", "bias"):
        ids = torch.tensor([1, 2])
        calls.append(lambda: torch.ops.qaig.embedding(ids, packed, scale, zero, N, K, 3, GROUP, 0))
    for call in calls:
        with pytest.raises(ValueError, match=f"{name} must be an ordinary dense tensor.*{kind}.*{name}.{remedy}"):
            call()


@pytest.mark.parametrize("kind", ["sparse_coo", "_mkldnn", "quantized"])
def test_ids_that_are_not_dense_are_refused(kind):
    _, packed, scale, zero, *_ = arguments()
    with pytest.raises(ValueError, match="ids must be an ordinary dense tensor"):
        torch.ops.qaig.embedding(FOREIGN[kind][0](torch.tensor([1, 2])), packed, scale, zero, N, K, 3, GROUP, 0)


@pytest.mark.parametrize("kind", FOREIGN)
def test_autocast_refuses_what_is_not_dense(kind):
    args = arguments()
    args[0] = FOREIGN[kind][0](args[0])
    with torch.autocast("cpu"), pytest.raises(ValueError, match="x must be an ordinary dense tensor"):
        torch.ops.qaig.linear(*args)


@pytest.mark.parametrize("rows", [2**62, 0, -1])
def test_a_weight_in_kernel_layout_has_the_size_that_is_requested(rows):
    x, packed, scale, zero, *_ = arguments(bits=4)
    layout = ops.kernel_layout(x.device, 4)
    if layout == 0:
        pytest.skip("there are no kernels here")
    words, scales, zeros = torch.ops.qaig.repack(packed, scale, zero, N, K, 4, GROUP, 0)
    with pytest.raises(ValueError, match=f"out_features={rows}"):
        torch.ops.qaig.linear_reference(x, words, scales, zeros, None, 0, 0, rows, 4, GROUP, 16, layout)
