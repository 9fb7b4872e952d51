"""The operator on a stack of experts, in plain torch."""

from typing import Any

import pytest
import torch
from torch import Tensor

import transformers_qaig.nn.experts  # noqa: F401  (registers the operator)
from transformers_qaig.formats.experts import expert_shapes
from transformers_qaig.formats.packing import pack, pack_zero_point
from transformers_qaig.formats.reference import Weight, dequantize

N, K, GROUP, BITS = 40, 64, 32, [4, 3, 8, 2, 5]
OFFSETS = torch.tensor([0, 3, 3, 7, 8, 8], dtype=torch.int32)
ROWS = 10
"""Two of them belong to no expert."""


def stack(bits: list[int], sym: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    words, zeros = [], []
    for width in bits:
        words.append(pack(torch.randint(2**width, (N, K), generator=generator, dtype=torch.uint8), width).flatten())
        zero = torch.randint(2**width, (N, K // GROUP), generator=generator, dtype=torch.uint8)
        zeros.append(pack_zero_point(zero, width).flatten())
    scale = torch.rand(len(bits), N, K // GROUP, generator=generator) * 0.1 + 0.01
    return torch.cat(words), scale, None if sym else torch.cat(zeros)


def dense(bits: list[int], packed: Tensor, scale: Tensor, zero: Tensor | None) -> list[Tensor]:
    shapes, found, word, point = expert_shapes(bits, N, K, GROUP), [], 0, 0
    for e, width in enumerate(bits):
        size = shapes.packed[e][0] * shapes.packed[e][1]
        points = shapes.zero[e][0] * shapes.zero[e][1]
        own = None if zero is None else zero[point : point + points].view(shapes.zero[e])
        weight = Weight(packed[word : word + size].view(shapes.packed[e]), scale[e], own, N, K, width, GROUP, 0)
        found.append(dequantize(weight, torch.float32))
        word, point = word + size, point + points
    return found


def run(x: Tensor, offsets: Tensor = OFFSETS, stored: list[int] = BITS, sym: bool = False, **changes: Any) -> Tensor:
    packed, scale, zero = stack(stored, sym)
    arguments = {"packed": packed, "scale": scale, "zero": zero, "bits": stored, "out_features": N, "group_size": GROUP,
                 "activation_bits": 16, "layout": 0, **changes}  # fmt: skip
    return torch.ops.qaig.experts_linear(x, offsets, *arguments.values())


@pytest.mark.parametrize("sym", [False, True])
def test_every_row_meets_its_own_expert(sym: bool) -> None:
    x, out = torch.randn(ROWS, K), torch.zeros(ROWS, N)
    for e, weight in enumerate(dense(BITS, *stack(BITS, sym))):
        out[OFFSETS[e] : OFFSETS[e + 1]] = x[OFFSETS[e] : OFFSETS[e + 1]] @ weight.T
    torch.testing.assert_close(run(x, sym=sym), out, rtol=1e-4, atol=1e-4)


def test_one_width_stands_for_all() -> None:
    x = torch.randn(ROWS, K)
    assert torch.equal(run(x, stored=[4] * 5, bits=[4]), run(x, stored=[4] * 5))


def test_rows_of_no_expert_are_zero() -> None:
    out = run(torch.full((ROWS, K), torch.inf))
    assert torch.equal(out[8:], torch.zeros(2, N))


def test_the_reference_by_name_is_the_same() -> None:
    x, (packed, scale, zero) = torch.randn(ROWS, K), stack(BITS)
    wanted = torch.ops.qaig.experts_linear_reference(x, OFFSETS, packed, scale, zero, BITS, N, GROUP, 16, 0)
    torch.testing.assert_close(run(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("offsets", "wrong"),
    [
        ([1, 3, 3, 7, 8, 8], "offsets"),
        ([0, 4, 3, 7, 8, 8], "offsets"),
        ([0, 3, 3, 7, 8, 11], "offsets"),
        ([0, -1, 3, 7, 8, 8], "offsets"),
    ],
)
def test_rows_that_are_not_there_are_an_error(offsets: list[int], wrong: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=wrong):
        run(torch.randn(ROWS, K), torch.tensor(offsets, dtype=torch.int32))


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"packed": torch.zeros(7, dtype=torch.int32)}, "packed"),
        ({"packed": torch.zeros(7)}, "packed"),
        ({"scale": torch.ones(5, N, 3)}, "scale"),
        ({"scale": torch.ones(5, N, 2, dtype=torch.float64)}, "scale"),
        ({"zero": torch.zeros(3, dtype=torch.int32)}, "zero"),
        ({"bits": [4, 4]}, "bits"),
        ({"bits": []}, "bits"),
        ({"bits": [4, 3, 8, 2, 9]}, "bits"),
        ({"out_features": N + 1}, "packed|scale"),
        ({"out_features": 2**62}, "packed|scale|out_features"),
        ({"group_size": 48}, "group_size"),
        ({"layout": 7}, "layout"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes: dict[str, Any], wrong: str) -> None:
    with pytest.raises((ValueError, RuntimeError, NotImplementedError), match=wrong):
        run(torch.randn(ROWS, K), **changes)


@pytest.mark.parametrize("x", [torch.randn(K), torch.randn(2, 5, K), torch.ones(ROWS, K, dtype=torch.int32)])
def test_other_inputs_are_an_error(x: Tensor) -> None:
    with pytest.raises((ValueError, RuntimeError), match="x must"):
        run(x)


@pytest.mark.parametrize("offsets", [OFFSETS.long(), OFFSETS[None], OFFSETS.float()])
def test_other_offsets_are_an_error(offsets: Tensor) -> None:
    with pytest.raises((ValueError, RuntimeError), match="offsets"):
        run(torch.randn(ROWS, K), offsets)


def test_gradients_are_right() -> None:
    x = torch.randn(ROWS, K, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x,), fast_mode=True)


def test_a_scale_is_not_trainable() -> None:
    scale = stack(BITS)[1].requires_grad_()
    with pytest.raises(NotImplementedError, match="not trainable"):
        run(torch.randn(ROWS, K), scale=scale).sum().backward()


def test_forward_mode_derivatives_are_those_of_the_forward_map() -> None:
    x, tangent = torch.randn(2, ROWS, K)
    _, derivative = torch.func.jvp(run, (x,), (tangent,))
    torch.testing.assert_close(derivative, run(tangent), rtol=1e-4, atol=1e-4)


def test_autocast_casts_the_input_alone() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = run(torch.randn(ROWS, K))
    assert out.dtype == torch.bfloat16


def test_shapes_without_values() -> None:
    packed, scale, zero = (t.to("meta") for t in stack(BITS))
    x, offsets = torch.randn(ROWS, K, device="meta"), OFFSETS.to("meta")
    out = torch.ops.qaig.experts_linear(x, offsets, packed, scale, zero, BITS, N, GROUP, 16, 0)
    assert (out.shape, out.device.type) == ((ROWS, N), "meta")
