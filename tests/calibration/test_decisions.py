"""Decisions describe a block: what is added, dropped and built from them, without a change to the block."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests import seeds
from tests.tolerance import rounding
from transformers_qaig.calibration.decisions import (
    BlockDecisions,
    cast_like,
    dtype_of,
    folded,
    folded_view,
    in_float32,
    pack,
    rounded,
    rounding_errors,
)
from transformers_qaig.equalization.fold import Group
from transformers_qaig.formats.hadamard import Rotation
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.nn import QAIGLinear
from transformers_qaig.nn.transformed_input import TransformedInputLinear
from transformers_qaig.rounding.clipping import Clipping
from transformers_qaig.rounding.damping import Damping
from transformers_qaig.rounding.quant_grid import QuantizedWeight, grid_arguments, minmax_grid

WIDTH, INNER = 64, 96
ROTATION = Rotation(32, 1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(seeds.seed(5))
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


GROUP = Group(("up",), "up", "norm", tuple(range(WIDTH)))
SCHEMES = {"up": WeightScheme(3, 32), "down": WeightScheme(4, 32, sym=True)}
X = torch.randn(2, 5, WIDTH, generator=seeds.generator(1))


def scale() -> Tensor:
    return torch.rand(WIDTH, generator=seeds.generator(2)) + 0.5


def weights(block: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in block.named_parameters()}


def all_kinds(block: Block) -> BlockDecisions:
    """Decisions with a scale, clippings and codes."""
    made = BlockDecisions(SCHEMES).with_scale(GROUP, scale())
    groups = WIDTH // 32
    made = made.with_clippings({"up": Clipping(torch.full((INNER, groups), 0.7), torch.ones(INNER, groups))})
    grid = made.grid("down", block.down.weight.data, torch.float32)
    return made.with_roundings({"down": QuantizedWeight(grid, torch.full_like(grid.encode(block.down.weight), 7))})


def test_a_rotation_drops_what_was_chosen_for_the_unrotated_weight_alone() -> None:
    made = all_kinds(Block())
    made = made.with_clippings({"down": made.clippings["up"]}).with_roundings({"up": made.roundings["down"]})
    made = made.with_damping(["up", "down"], Damping(0.1))
    turned = made.with_rotations({"up": ROTATION})
    assert turned.schemes == {**SCHEMES, "up": replace(SCHEMES["up"], rotation=ROTATION)}
    assert turned.clippings.keys() == turned.roundings.keys() == turned.damping.keys() == {"down"}
    assert turned.scales == made.scales


def test_scales_of_an_earlier_pass_come_first() -> None:
    one, other = (BlockDecisions(SCHEMES).with_scale(GROUP, factor * scale()) for factor in (1, 2))
    assert [each for _, each in other.with_earlier_scales(one).scales] == [one.scales[0][1], other.scales[0][1]]


def test_folding_keeps_the_function_and_the_block() -> None:
    block = in_float32(Block())
    before, out = weights(block), block(X)
    made = BlockDecisions(SCHEMES).with_scale(GROUP, scale())
    new = folded(block, made)
    assert torch.allclose(new.up.weight, before["up.weight"] * scale(), rtol=1e-6)
    assert torch.allclose(new(X), out, rtol=0, atol=float(out.abs().max()) * rounding(torch.float32, WIDTH + INNER))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(block).items())
    assert folded_view(block, BlockDecisions(SCHEMES)) is block
    assert folded_view(block, made) is not block


def test_codes_are_taken_where_there_are_some_and_others_are_nearest_on_the_clipped_grid() -> None:
    block = in_float32(Block())
    made = all_kinds(block)
    new = rounded(block, made, ["up", "down"], torch.float32)
    weight = block.up.weight * scale()
    clipped = minmax_grid(
        weight, shrink=made.clippings["up"].shrink, **grid_arguments(SCHEMES["up"], torch.float32, False)
    )
    assert torch.equal(new.up.weight, clipped.quantize(weight))
    assert torch.equal(new.down.weight, made.roundings["down"].values)
    only = rounded(block, made, ["down"], torch.float32)
    assert torch.equal(only.up.weight, weight)


def test_the_packed_block_computes_what_the_rounded_one_does() -> None:
    block = in_float32(Block())
    made = all_kinds(block).with_rotations({"up": ROTATION})
    dense, packed = rounded(block, made, ["up", "down"], torch.float32), pack(in_float32(Block()), made, torch.float32)
    assert type(dense.up) is TransformedInputLinear
    assert type(packed.up) is type(packed.down) is QAIGLinear
    assert torch.equal(packed.down.dequantize(), dense.down.weight)
    out = dense(X)
    limit = float(out.abs().max()) * rounding(torch.float32, 2 * WIDTH + INNER)
    assert torch.allclose(packed(X), out, rtol=0, atol=limit)


def test_a_rounding_error_is_seen_from_the_block_before_folding() -> None:
    block = in_float32(Block())
    made = BlockDecisions(SCHEMES).with_scale(GROUP, scale())
    new = rounded(block, made, ["up", "down"], torch.float32)
    errors = rounding_errors(block, made, torch.float32)
    expected = new.up.weight / scale() - block.up.weight
    assert torch.allclose(errors["up"], expected, rtol=0, atol=1e-6)
    assert torch.allclose(errors["down"], new.down.weight - block.down.weight, rtol=0, atol=1e-7)


def test_scales_have_the_narrowest_dtype_and_each_tensor_gets_its_own_back() -> None:
    block = Block()
    block.up.to(torch.bfloat16)
    assert dtype_of(block, SCHEMES) == torch.bfloat16
    back = cast_like(in_float32(block), block)
    assert {name: tensor.dtype for name, tensor in back.named_parameters()} == {
        name: tensor.dtype for name, tensor in block.named_parameters()
    }


def test_a_scale_that_overflows_the_stored_dtype_names_its_layer() -> None:
    block = in_float32(Block())
    block.up.weight.data[3, 5] = 1e30
    with pytest.raises(ValueError, match=r"layers\.0\.up"):
        pack(block, BlockDecisions(SCHEMES), torch.float16, "layers.0")
