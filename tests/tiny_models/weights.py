"""Random weights of tiny models."""

from math import prod

import torch
from torch import nn

from tests import seeds


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Random weights under which every norm, bias and gate matters; the same ones for every dtype, up to rounding.

    Vectors keep the value they were built with as their mean. So 1 + w norms (built with zeros) and plain norms (built
    with ones) both scale by about 1 ± 0.3. Scalars are gates, built with zeros: they get 0.5 on top.
    """
    generator = seeds.generator(seed)
    convolutions = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() <= 1:
            mean = 0.5 if parameter.numel() == 1 else 0.0
            scale = 0.1 if name.endswith("bias") or parameter.numel() == 1 else 0.3
            parameter.copy_(parameter.float() + mean + scale * noise)
        else:
            fan_in = prod(parameter.shape[1:]) if id(parameter) in convolutions else parameter.shape[-1]
            parameter.copy_(noise / fan_in**0.5)
