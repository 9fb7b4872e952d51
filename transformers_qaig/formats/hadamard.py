"""Rotates a linear layer's input: random signs, then a Hadamard transform of each block of channels.

    x W' = (x R)(W R)',   R = D H / √block,   D diagonal with entries ±1,   H block-diagonal of Sylvester's matrices

R is orthogonal, so the layer's function stays. But what is rounded (W R, and x R where activations are rounded) no
longer has channels far larger than their neighbours.

Two implementations with the same `(block, seed)` must agree to the bit. Otherwise rounding x R to 8 bits turns a
difference in the last place into a whole step. Hence both parts are pinned:

- **Signs.** SplitMix64 (Steele, Lea and Flood, 2014) starts at `seed`. Channel k is multiplied by -1 if bit k mod 64 of
its output k div 64 is set. Outputs of that generator can be computed in any order.
- **Transform.** It is computed in float32, or float64 for float64. Butterflies (a, b) → (a + b, a - b) go over channels
1, 2, 4, …, block / 2 apart, in this order. Then one multiplication by 1 / √block, rounded to float32, follows.
"""

import torch
from torch import Tensor

from .scheme import BLOCKS, MAX_SEED, Rotation

__all__ = ["BLOCKS", "MAX_SEED", "Rotation", "fit_block", "random_signs", "rotate", "rotate_back"]

_MASK = (1 << 64) - 1


def fit_block(in_features: int, most: int) -> int | None:
    """Returns the largest block of at most `most` channels that divides `in_features`, or None if there is none."""
    return next((block for block in reversed(BLOCKS) if block <= most and in_features % block == 0), None)


def random_signs(in_features: int, seed: int, device: torch.device | str | None = None) -> Tensor:
    """Returns the diagonal of D: int8 `[in_features]` of ±1."""
    words = [_splitmix64(seed, i) for i in range(-(-in_features // 64))]
    signed = torch.tensor([word - (word >> 63 << 64) for word in words], dtype=torch.int64, device=device)
    bits = signed[:, None] >> torch.arange(64, device=device) & 1
    return (1 - 2 * bits).view(-1)[:in_features].to(torch.int8)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Computes X R for x `[..., K]`, floating: in float32, or float64 if x is."""
    x = _at_least_float32(x)
    return _transform(x * random_signs(x.shape[-1], rotation.seed, x.device), rotation.block)


def rotate_back(y: Tensor, rotation: Rotation) -> Tensor:
    """Computes Y R', the inverse of `rotate`."""
    y = _at_least_float32(y)
    return _transform(y, rotation.block) * random_signs(y.shape[-1], rotation.seed, y.device)


def _transform(x: Tensor, block: int) -> Tensor:
    y = x
    for distance in (1 << i for i in range(block.bit_length() - 1)):
        a, b = y.reshape(*x.shape[:-1], x.shape[-1] // (2 * distance), 2, distance).unbind(-2)
        y = torch.stack((a + b, a - b), -2)
    return y.reshape(x.shape) * block**-0.5


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _splitmix64(seed: int, index: int) -> int:
    """Returns output `index` of SplitMix64 started at `seed`."""
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31
