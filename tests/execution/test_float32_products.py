"""Products of 16-bit matrices are computed in float32 where the CPU is slow at them, and rounded once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from transformers_qaig.execution.float32_products import Float32Products, is_slow

HALVES = [torch.bfloat16, torch.float16]
CALLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": linear,
    "linear by name": lambda x, weight, bias: linear(input=x, weight=weight, bias=bias),
    "a module": lambda x, weight, bias: _module(weight, bias)(x),
    "matmul": lambda x, weight, bias: torch.matmul(x, weight.T),
    "the method": lambda x, weight, bias: x.matmul(weight.T),
    "the operator": lambda x, weight, bias: x @ weight.T,
    "batches": lambda x, weight, bias: torch.bmm(x[None], weight.T[None])[0],
    "attention": lambda x, weight, bias: scaled_dot_product_attention(
        x[None, None], weight[None, None], weight[None, None]
    ),
}


def _module(weight: Tensor, bias: Tensor) -> torch.nn.Linear:
    module = torch.nn.Linear(*reversed(weight.shape), dtype=weight.dtype)
    module.weight, module.bias = (torch.nn.Parameter(value, requires_grad=False) for value in (weight, bias))
    return module


def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (37, 96), (40, 96), (40,)
    x, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return x, weight, bias


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("call", CALLS)
def test_a_product_is_the_one_in_float32_rounded_once(call: str, dtype: torch.dtype) -> None:
    given = operands(dtype)
    exact = CALLS[call](*(value.float() for value in given)).to(dtype)
    with Float32Products(frozenset((dtype,))):
        found = CALLS[call](*given)
    assert found.dtype == dtype
    assert torch.equal(found, exact)


def test_it_multiplies_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    recording = _Recording(seen)
    with recording, Float32Products(frozenset((torch.bfloat16,))):
        linear(*operands(torch.bfloat16))
        linear(*operands(torch.float32))
        linear(*operands(torch.float64))
        linear(*operands(torch.float16))
    assert seen == [torch.float32, torch.float32, torch.float64, torch.float16]


class _Recording(torch.overrides.TorchFunctionMode):
    """Notes the dtype that each `linear` gets."""

    def __init__(self, seen: list[torch.dtype]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is linear:
            self.seen.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_what_autograd_records_and_other_functions_are_left_alone() -> None:
    x, weight, bias = operands(torch.bfloat16)
    weight.requires_grad_()
    seen: list[torch.dtype] = []
    with _Recording(seen), Float32Products(frozenset((torch.bfloat16,))):
        linear(x, weight, bias).sum().backward()
        assert (x + x).dtype == torch.bfloat16
        with torch.no_grad():
            linear(x, weight, bias)
    assert seen == [torch.bfloat16, torch.float32]
    assert weight.grad is not None


def test_a_mask_of_attention_is_widened_too() -> None:
    x = operands(torch.bfloat16)[0][None, None]
    mask = torch.zeros(37, 37, dtype=torch.bfloat16).masked_fill(torch.ones(37, 37).triu(1) > 0, -torch.inf)
    with Float32Products(frozenset((torch.bfloat16,))):
        found = scaled_dot_product_attention(x, x, x, attn_mask=mask)
    wide = x.float()
    assert torch.equal(found, scaled_dot_product_attention(wide, wide, wide, attn_mask=mask.float()).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int8])
def test_other_dtypes_are_never_slow(dtype: torch.dtype) -> None:
    assert not is_slow(dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("supported", [True, False, None])
def test_slow_is_what_onednn_has_no_kernel_for(
    dtype: torch.dtype, supported: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    asked = type("_Operators", (), {} if supported is None else {name: staticmethod(lambda: supported)})()
    monkeypatch.setattr("transformers_qaig.execution.float32_products.torch.ops.mkldnn", asked)
    assert is_slow(dtype) == (supported is not True)


def test_a_result_that_is_given_is_filled_and_mixed_dtypes_are_refused_as_ever() -> None:
    x, weight, _ = operands(torch.bfloat16)
    out = torch.zeros(37, 40, dtype=torch.bfloat16)
    with Float32Products(frozenset((torch.bfloat16,))):
        torch.matmul(x, weight.T, out=out)
        with pytest.raises(RuntimeError, match="dtype"):
            torch.matmul(x, weight.float().T)
    assert torch.equal(out, torch.matmul(x, weight.T))
