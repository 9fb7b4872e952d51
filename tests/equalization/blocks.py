"""Hand-made blocks whose names tell nothing."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import seeds

C, HEADS, KV, D, I = 32, 4, 2, 8, 48  # noqa: E741 (I: intermediate size)
X = torch.randn(1, 13, C, generator=seeds.generator(5))


class Scale(nn.Module):
    """RMS norm that multiplies by `offset + weight`, under a name that tells nothing."""

    def __init__(self, size: int = C, offset: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size) * 0.1 + 1 - offset)
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (self.offset + self.weight)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, T, heads·D] each, with fewer heads in k and v."""
    q, k, v = (t.unflatten(-1, (-1, D)).transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return y.transpose(1, 2).flatten(-2)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(C, HEADS * D), nn.Linear(C, KV * D), nn.Linear(C, KV * D)
        self.d = nn.Linear(HEADS * D, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(attend(self.a(x), self.b(x), self.c(x)))


class FusedAttention(nn.Module):
    """`split`: [..., rows of the fused linear] → q, k, v."""

    def __init__(self, rows: int, split):
        super().__init__()
        self.fused, self.d, self.split = nn.Linear(C, rows), nn.Linear(HEADS * D, C), split

    def forward(self, x: Tensor) -> Tensor:
        return self.d(attend(*self.split(self.fused(x))))


class GatedMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g, self.u, self.o = nn.Linear(C, I), nn.Linear(C, I), nn.Linear(I, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(F.silu(self.g(x)) * self.u(x))


class FusedMLP(nn.Module):
    def __init__(self, split):
        super().__init__()
        self.fused, self.o, self.split = nn.Linear(C, 2 * I), nn.Linear(I, C), split

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.split(self.fused(x))
        return self.o(F.silu(gate) * up)


class MLP(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.i, self.o, self.activation = nn.Linear(C, I), nn.Linear(I, C), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.activation(self.i(x)))


class Branch(nn.Module):
    """x + f(norm(x))."""

    def __init__(self, f: nn.Module, norm: nn.Module | None = None):
        super().__init__()
        self.norm, self.f = norm or Scale(), f

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(self.norm(x))
