"""The local rotation of a linear layer's input: random signs, then a Hadamard transform of each block of channels.

    x W' = (x R)(W R)',   R = D H / √block,   D diagonal with entries ±1,   H block-diagonal of Sylvester's matrices

R is orthogonal, so the layer's function stays; what is rounded (W R, and x R where activations are rounded) no longer
has channels far larger than their neighbours.

Two implementations with the same `(block, seed)` must agree to the bit, for rounding x R to 8 bits makes a whole step
of a difference in the last place. Hence both parts are pinned:

- **Signs.** Channel k is multiplied by -1 if bit k mod 64 of output k div 64 of SplitMix64 (Steele, Lea and Flood,
  2014), started at `seed`, is set. Outputs of that generator can be had in any order.
- **Transform.** In float32 (float64 for float64), butterflies (a, b) → (a + b, a - b) over channels 1, 2, 4, …,
  block / 2 apart, in this order; then one multiplication by 1 / √block, rounded to float32.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCKS = (16, 32, 64, 128, 256)
_MASK = (1 << 64) - 1
MAX_SEED = (1 << 63) - 1


class Rotation(NamedTuple):
    """
    Attributes:
        block: channels that are transformed together, one of `BLOCKS`, a divisor of the input channels.
        seed: of the signs, 0 to 2^63 - 1.
    """

    block: int
    seed: int

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Rotation | None":
        """What an entry of the plan says: its `rotation`, `{"block", "seed"}`, if it has one."""
        rotation = entry.get("rotation")
        return None if rotation is None else cls(**rotation)

    def check(self, in_features: int) -> None:
        """
        Raises:
            ValueError: this is no rotation of `in_features` channels.
        """
        if self.block not in BLOCKS or in_features % self.block:
            raise ValueError(
                f"rotation: block must be one of {BLOCKS} that divides in_features={in_features}, got {self.block}"
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"rotation: seed must be between 0 and 2^63 - 1, got {self.seed}")


def fit_block(in_features: int, most: int) -> int | None:
    """The largest block of at most `most` channels that divides `in_features`; None if not even the smallest does."""
    return next((block for block in reversed(BLOCKS) if block <= most and in_features % block == 0), None)


def random_signs(in_features: int, seed: int, device: torch.device | str | None = None) -> Tensor:
    """The diagonal of D: int8 `[in_features]` of ±1."""
    words = [_splitmix64(seed, i) for i in range(-(-in_features // 64))]
    signed = torch.tensor([word - (word >> 63 << 64) for word in words], dtype=torch.int64, device=device)
    bits = signed[:, None] >> torch.arange(64, device=device) & 1
    return (1 - 2 * bits).view(-1)[:in_features].to(torch.int8)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """x R for x `[..., K]`, floating: float32, or float64 if x is."""
    x = _at_least_float32(x)
    return _transform(x * random_signs(x.shape[-1], rotation.seed, x.device), rotation.block)


def rotate_back(y: Tensor, rotation: Rotation) -> Tensor:
    """y R', the inverse of `rotate`."""
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
    """Output `index` of SplitMix64 started at `seed`."""
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31
