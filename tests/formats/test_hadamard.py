import math

import pytest
import torch

from tests.tolerance import assert_close
from transformers_qaig.formats.hadamard import BLOCKS, Rotation, fit_block, random_signs, rotate, rotate_back


def matrix(in_features: int, rotation: Rotation) -> torch.Tensor:
    """R by its definition, in float64: entry (i, j) of Sylvester's matrix is -1 to the number of bits i and j share."""
    index = range(rotation.block)
    block = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in index] for i in index], dtype=torch.float64)
    signs = random_signs(in_features, rotation.seed).double()
    return signs[:, None] * torch.block_diag(*[block] * (in_features // rotation.block)) / math.sqrt(rotation.block)


@pytest.mark.parametrize("block", BLOCKS)
def test_is_the_matrix_of_its_definition(block):
    rotation, x = Rotation(block, 3), torch.randn(2, 5, 3 * 256, dtype=torch.float64)
    expected = x @ matrix(768, rotation)
    assert_close(rotate(x, rotation), expected, block)
    assert_close(rotate(x.float(), rotation), expected.float(), block)
    assert_close(rotate_back(x, rotation), x @ matrix(768, rotation).T, block)


@pytest.mark.parametrize("block", BLOCKS)
def test_back_undoes_it(block):
    x = torch.randn(7, 512)
    rotated = rotate(x, Rotation(block, 9))
    assert_close(rotate_back(rotated, Rotation(block, 9)), x, 2 * block)
    assert_close(rotated.norm(), x.norm(), x.numel() + block)
    assert not torch.allclose(rotated, x, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_is_computed_in_float32(dtype):
    x = torch.randn(3, 64).to(dtype)
    assert torch.equal(rotate(x, Rotation(64, 0)), rotate(x.float(), Rotation(64, 0)))


def test_an_outlier_is_spread_over_its_block_only():
    x = torch.zeros(96)
    x[40] = 32**0.5
    rotated = rotate(x, Rotation(32, 1))
    torch.testing.assert_close(rotated[32:64].abs(), torch.ones(32))
    assert not rotated[:32].any()
    assert not rotated[64:].any()


def test_signs_are_those_of_splitmix64():
    # Outputs 0 and 1 of the generator started at 0, and output 0 of it started at 1234567, as published with it.
    for seed, words in ((0, (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4)), (1234567, (6457827717110365317,))):
        expected = [1 - 2 * (word >> bit & 1) for word in words for bit in range(64)]
        assert random_signs(len(expected), seed).tolist() == expected
        assert random_signs(40, seed).tolist() == expected[:40]


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
def test_no_rows_rotate_to_no_rows(shape):
    rotation = Rotation(32, 1)
    assert rotate(torch.empty(shape), rotation).shape == rotate_back(torch.empty(shape), rotation).shape == shape


def test_largest_seed():
    seed = 2**63 - 1
    Rotation(16, seed).check(32)
    assert set(random_signs(256, seed).tolist()) == {-1, 1}


@pytest.mark.parametrize("rotation", [(8, 0), (48, 0), (512, 0), (64, 0), (0, 0), (-16, 0), (32, -1), (32, 2**63)])
def test_what_is_no_rotation_is_refused(rotation):
    with pytest.raises(ValueError, match="rotation: "):
        Rotation(*rotation).check(96)


@pytest.mark.parametrize(
    ("in_features", "most", "block"),
    [
        (4096, 128, 128),
        (3584, 256, 256),
        (4304, 128, 16),
        (3420, 128, None),
        (768, 64, 64),
        (4096, 96, 64),
        (64, 8, None),
    ],
)
def test_the_largest_block_that_fits(in_features, most, block):
    assert fit_block(in_features, most) == block
