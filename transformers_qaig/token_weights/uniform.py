"""Uniform token weights: every real token counts the same."""

from __future__ import annotations

from torch import Tensor

from .base import Stateless, SubBlock


class Uniform(Stateless):
    """Weighs real tokens 1 and padding 0."""

    def weigh(self, sub_block: SubBlock) -> list[Tensor]:
        """Returns the masks as λ fp32 `[B, T]` for each of the sub-block's inputs."""
        return [inputs.mask.float() for inputs in sub_block.inputs]
