"""Uniform token weights: every real token counts the same."""

from __future__ import annotations

from torch import Tensor

from .base import Stateless, SubBlock


class Uniform(Stateless):
    """1 at real tokens, 0 at padding."""

    def weigh(self, sub_block: SubBlock) -> list[Tensor]:
        return [inputs.mask.float() for inputs in sub_block.inputs]
