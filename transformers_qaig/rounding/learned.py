"""
Learned rounding: offsets of the codes and ends of the grids, by the sign of the gradient (arXiv 2309.05516).

Every weight of a block is rounded as code = round(w / s + v) + z, with an offset v in [-½, ½] of its own and a grid
whose two ends are moved by factors of their own. All are moved at once against the gradient's sign, straight through
the rounding, so that what the block puts out comes close to what it did in full precision. The step is the same for
all, and shrinks linearly to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .grid import Grid, Rounding, storable

ENDS = (0.5, 1.25)
"""Bounds of the factors on a grid's ends."""


@dataclass(frozen=True)
class Start:
    """
    Where one weight's learning starts from.

    Attributes:
        weight: fp32 [N, K]: what `grid` rounds, with v = 0, to the codes to start from. GPTQ's second result, say.
        grid: without a gain.
        storage_dtype: of the scale.
    """

    weight: Tensor
    grid: Grid
    storage_dtype: torch.dtype


@dataclass
class Learned:
    """
    Outcome of [`learn`].

    Attributes:
        roundings: the best seen.
        start, best: what `judge` gave for the rounding to start from, and for the best one.
        history: (step, loss of its batch, what `judge` gave) each time that was asked.
    """

    roundings: dict[str, Rounding]
    start: float
    best: float
    history: list[tuple[int, float, float]] = field(default_factory=list)


class SoftRounding(nn.Module):
    """A weight whose rounding can be learned; gives fp32 [N, K], on the grid."""

    def __init__(self, start: Start):
        super().__init__()
        if start.grid.step is not start.grid.scale and not torch.equal(start.grid.step, start.grid.scale):
            raise ValueError("a grid with a gain cannot be learned: its codes are not the nearest values.")
        self._start = start
        self.offset = nn.Parameter(torch.zeros_like(start.weight))
        self.low = nn.Parameter(torch.ones_like(start.grid.scale))
        self.high = nn.Parameter(torch.ones_like(start.grid.scale))

    def forward(self) -> Tensor:
        scale, zero = self._scale_and_zero()
        scale, zero = scale.unsqueeze(-1), zero.unsqueeze(-1)
        grid, weight = self._start.grid, self._start.weight
        codes = _through(torch.round, grid.grouped(weight) / scale + grid.grouped(self.offset)) + zero
        return ((codes.clamp(0, grid.max_code) - zero) * scale).reshape(weight.shape)

    def rounding(self) -> Rounding:
        """As it is to be stored."""
        with torch.no_grad():
            scale, zero = self._scale_and_zero()
            start, grid = self._start, self._start.grid
            offset, spread = grid.grouped(self.offset), scale.unsqueeze(-1)
            codes = (grid.grouped(start.weight) / spread + offset).round() + zero.unsqueeze(-1)
            codes = codes.clamp(0, grid.max_code).to(torch.uint8).reshape(start.weight.shape)
        return Rounding(Grid(scale, zero, grid.bits, grid.sym, scale), codes)

    def move(self, step: float) -> None:
        """One step against the gradient's sign."""
        with torch.no_grad():
            for parameter, (low, high) in ((self.offset, (-0.5, 0.5)), (self.low, ENDS), (self.high, ENDS)):
                if parameter.grad is not None:
                    parameter.sub_(step * parameter.grad.nan_to_num(0.0).sign()).clamp_(low, high)
                    parameter.grad = None

    def _scale_and_zero(self) -> tuple[Tensor, Tensor]:
        grid = self._start.grid
        if grid.sym:
            scale, zero = grid.scale * self.high, grid.zero
        else:
            below, above = grid.zero * grid.scale * self.low, (grid.max_code - grid.zero) * grid.scale * self.high
            scale = (below + above) / grid.max_code
            zero = _through(torch.round, below / scale).clamp(0, grid.max_code)
        return _through(lambda s: storable(s, self._start.storage_dtype), scale), zero


def learn(
    starts: Mapping[str, Start],
    batch_loss: Callable[[Mapping[str, Tensor], int], float],
    judge: Callable[[Mapping[str, Tensor]], float],
    *,
    steps: int,
    checks: int = 10,
    rate: float | None = None,
) -> Learned:
    """
    Learn the rounding of several weights at once.

    Args:
        starts: name → where to start.
        batch_loss: (name → weight, step) → loss of that step's batch, its gradient added to the weights' `.grad`.
        judge: name → weight → loss on data that no batch holds; what is best by it is returned.
        steps: at most.
        checks: how often `judge` is asked, spread evenly; learning stops when it got worse three times in a row.
        rate: of the first step, of offsets in steps of the grid and of factors; 1 / steps if None.

    Returns:
        the best roundings by `judge`: those of the start if nothing was better.
    """
    soft = {name: SoftRounding(start) for name, start in starts.items()}

    def current() -> dict[str, Tensor]:
        return {name: module().detach() for name, module in soft.items()}

    with torch.no_grad():
        level = judge(current())
    found = Learned({name: module.rounding() for name, module in soft.items()}, level, level)
    every, worse = max(steps // checks, 1), 0
    rate = 1 / steps if rate is None else rate
    for step in range(steps):
        with torch.enable_grad():
            weights = {name: module() for name, module in soft.items()}
            leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
            loss = batch_loss(leaves, step)
            used = [name for name, leaf in leaves.items() if leaf.grad is not None]
            torch.autograd.backward([weights[name] for name in used], [leaves[name].grad for name in used])
        for module in soft.values():
            module.move(rate * (1 - step / steps))
        if (step + 1) % every == 0 or step + 1 == steps:
            with torch.no_grad():
                level = judge(current())
            found.history.append((step + 1, loss, level))
            worse = 0 if level < found.best else worse + 1
            if level < found.best:
                found.best = level
                found.roundings = {name: module.rounding() for name, module in soft.items()}
            if worse == 3:
                break
    return found


def _through(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) to the last bit, with the gradient of x."""
    return function(x).detach() + (x - x.detach())
