"""Packed weights as GGUF's blocks: gguf's own code reads back the weights that ours stand for."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import seeds
from transformers_qaig.formats import reference
from transformers_qaig.formats.packing import CHECKPOINT_LAYOUT, pack, pack_zero_point
from transformers_qaig.formats.reference import Weight
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.integrations.exporting.saved_model import PackedWeight

gguf = pytest.importorskip("gguf")
quants = pytest.importorskip("gguf.quants")
blocks = pytest.importorskip("transformers_qaig.integrations.exporting.gguf.blocks")

N, K = 6, 128
WIDTHS = [(bits, sym) for bits in range(2, 9) for sym in (True, False) if (bits, sym) != (8, False)]


def saved(
    bits: int, sym: bool, group_size: int = 64, scale: Tensor | None = None, path: str = "model.up_proj"
) -> tuple[Any, PackedWeight]:
    """A saved model with one random weight; its scales are float16 unless given."""
    groups = 1 if group_size == -1 else K // group_size
    generator = seeds.generator(bits)
    codes = torch.randint(1 << bits, (N, K), generator=generator, dtype=torch.uint8)
    codes[0, :2] = torch.tensor([0, (1 << bits) - 1])
    zero = torch.randint(1 << bits, (N, groups), generator=generator, dtype=torch.uint8)
    if scale is None:
        scale = (torch.rand(N, groups, generator=generator) + 0.01).half()
    stored_zero = None if sym else pack_zero_point(zero, bits)
    weight = Weight(pack(codes, bits), scale, stored_zero, N, K, bits, group_size, CHECKPOINT_LAYOUT)
    packed = PackedWeight(path, path, WeightScheme(bits, group_size, sym), N, K, "linear")
    return SimpleNamespace(packed={path: packed}, weight=lambda asked: {path: weight}[asked.path]), packed


def read_back(model: Any, packed: PackedWeight, rows: Tensor | None = None) -> Tensor:
    made = blocks.blocks(model, packed, rows)
    assert made.dtype == np.uint8
    assert made.shape[1] == K // 32 * blocks.BYTES[blocks.type_of(packed)]
    return torch.from_numpy(quants.dequantize(made, blocks.type_of(packed)))


@pytest.mark.parametrize(("bits", "sym"), WIDTHS)
@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_a_weight_is_read_back_exactly_or_to_the_rounding_of_its_minimum(bits: int, sym: bool, group_size: int) -> None:
    model, packed = saved(bits, sym, group_size)
    exact = reference.dequantize(model.weight(packed), torch.float32)
    found = read_back(model, packed)
    if blocks.type_of(packed) is not gguf.GGMLQuantizationType.Q4_1:
        assert torch.equal(found, exact)
        return
    steps = model.weight(packed).scale.float().repeat_interleave(K // model.weight(packed).scale.shape[1], 1)
    assert not torch.equal(found, exact)
    assert float(((found - exact).abs() / steps).max()) <= 15 * 2**-11 + 1e-5, "half a unit of float16 of the minimum"


@pytest.mark.parametrize(
    ("bits", "sym", "name"),
    [
        (2, False, "Q4_0"),
        (3, True, "Q4_0"),
        (4, True, "Q4_0"),
        (4, False, "Q4_1"),
        (5, False, "Q8_0"),
        (8, True, "Q8_0"),
    ],
)
def test_the_smallest_block_that_holds_a_weight_is_taken(bits: int, sym: bool, name: str) -> None:
    assert blocks.type_of(saved(bits, sym)[1]).name == name


def test_rows_are_written_in_the_order_that_is_asked_for() -> None:
    order = torch.tensor([3, 0, 5])
    for bits, sym in ((3, False), (4, False), (6, False)):
        model, packed = saved(bits, sym)
        assert torch.equal(read_back(model, packed, order), read_back(model, packed)[order])


def test_what_no_block_holds_is_refused() -> None:
    assert list(blocks.refusals(saved(4, False)[0])) == []
    (asymmetric,) = blocks.refusals(saved(8, False)[0])
    assert "does not fit in Q8_0" in str(asymmetric)
    assert "model.up_proj" in str(asymmetric)
    (groups,) = blocks.refusals(saved(4, True, 16)[0])
    assert "groups" in str(groups)


@pytest.mark.parametrize("value", [1e-9, 1e6])
def test_scales_beyond_float16_are_refused(value: float) -> None:
    (refusal,) = blocks.refusals(saved(3, True, scale=torch.full((N, 2), value))[0])
    assert "scales in float16" in str(refusal)
    assert "dtype=torch.float16" in str(refusal)


def test_a_minimum_beyond_float16_is_refused() -> None:
    """The scale fits; the product with a zero point of up to 15 does not."""
    (refusal,) = blocks.refusals(saved(4, False, scale=torch.full((N, 2), 60_000.0))[0])
    assert "scales in float16" in str(refusal)


def test_notes_tell_the_types_and_the_largest_error() -> None:
    assert list(blocks.notes(saved(3, True)[0])) == ["Blocks: 1 weights as Q4_0."]
    scale = torch.full((N, 2), 1 + 2**-12)  # a quarter of a unit of float16
    _, error = blocks.notes(saved(3, True, scale=scale)[0])
    assert f"largest error of a weight is {7 * 2**-12:.4f} of a step" in error
