"""Learned rounding: moves code offsets and grid ends by the sign of the gradient (arXiv 2309.05516).

Every weight of a block is rounded as code = round(w / s + v) + z. Each weight has its own offset v in [-½, ½], and each
grid has a factor on either end. All move at once against the gradient's sign, straight through the rounding, so that
the block's output approaches its output in full precision. The step is the same for all and shrinks linearly to zero.
With the codes settled, Adam trains the scales and the parameters around them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .quant_grid import QuantGrid, QuantizedWeight, storable

RANGE_BOUNDS = (0.5, 1.25)
"""Bounds of the factors on a grid's ends."""


@dataclass(frozen=True)
class LearnableInit:
    """The weight and grid that learning starts from.

    Attributes:
        weight: fp32 [N, K]: what `grid` rounds, with v = 0, to the codes to start from, such as the source of a GPTQ
            result.
        grid: without a gain.
        storage_dtype: of the scale.
    """

    weight: Tensor
    grid: QuantGrid
    storage_dtype: torch.dtype


@dataclass
class Learned:
    """The outcome of [`learn`].

    Attributes:
        results: the best found: what each module's `result` returned.
        start, best: validation loss at the start, and of the best.
        history: (step, loss of its batch, validation loss) at each check.
    """

    results: dict[str, Any]
    start: float
    best: float
    history: list[tuple[int, float, float]] = field(default_factory=list)

    @property
    def is_better(self) -> bool:
        """Whether the best is better than the start; one that is not finite is worse than any other."""
        return math.isfinite(self.best) and not self.start <= self.best


Keep = Callable[[Tensor], Tensor]
"""Returns a copy of a tensor where it is to be kept, such as in a file, or the tensor itself."""


def in_memory(tensor: Tensor) -> Tensor:
    """Returns the tensor itself."""
    return tensor


class Learnable(nn.Module):
    """A tensor that can be learned.

    Calling it returns the tensor in fp32. `move` trains it, and `result` returns what is stored.

    Args:
        keep: where the tensor, its gradient and what is learned of each element are kept. They are changed in place.
    """

    def __init__(self, keep: Keep = in_memory):
        super().__init__()
        self._keep = keep
        self._leaf: Tensor | None = None
        self._gradient: Tensor | None = None

    @torch.no_grad()
    def leaf(self) -> Tensor:
        """Returns the tensor as the loss reads it, whose `.grad` [`learn`] hands on; each call overwrites the last."""
        values = self()
        if self._leaf is None:
            self._leaf = self._keep(values).requires_grad_()
            if self._keep is not in_memory:
                self._leaf.register_post_accumulate_grad_hook(self._keep_gradient)
        else:
            self._leaf.data.copy_(values)
        self._leaf.grad = None
        return self._leaf

    def _keep_gradient(self, leaf: Tensor) -> None:
        """Moves a gradient that autograd has made; more of it is added in place."""
        assert leaf.grad is not None
        if self._gradient is None:
            self._gradient = self._keep(leaf.grad)
        elif leaf.grad.data_ptr() != self._gradient.data_ptr():
            self._gradient.copy_(leaf.grad)
        leaf.grad = self._gradient

    def move(self, step: float) -> None:
        """Takes one step with the gradients that were accumulated, and clears them.

        Args:
            step: its size, 0 to 1, relative to the range of what is learned.
        """
        raise NotImplementedError

    def result(self) -> Any:
        """Returns what is to be stored."""
        raise NotImplementedError


class LearnableRounding(Learnable):
    """A weight whose rounding can be learned."""

    def __init__(self, start: LearnableInit, keep: Keep = in_memory):
        super().__init__(keep)
        if start.grid.encode_scale is not start.grid.scale and not torch.equal(
            start.grid.encode_scale, start.grid.scale
        ):
            raise ValueError("a grid with a gain cannot be learned: its codes are not the nearest values.")
        self._start = replace(start, weight=keep(start.weight))
        self.offset = nn.Parameter(keep(torch.zeros_like(start.weight)))
        self.low = nn.Parameter(torch.ones_like(start.grid.scale))
        self.high = nn.Parameter(torch.ones_like(start.grid.scale))

    def forward(self) -> Tensor:
        """Returns the rounded weight, fp32 [N, K], on the grid; gradients go straight through the rounding."""
        scale, zero = self._scale_and_zero()
        scale, zero = scale.unsqueeze(-1), zero.unsqueeze(-1)
        grid, weight = self._start.grid, self._start.weight
        codes = straight_through(torch.round, grid.grouped(weight) / scale + grid.grouped(self.offset)) + zero
        return ((codes.clamp(0, grid.max_code) - zero) * scale).reshape(weight.shape)

    def result(self) -> QuantizedWeight:
        """Returns the codes and the grid that were learned."""
        with torch.no_grad():
            scale, zero = self._scale_and_zero()
            start, grid = self._start, self._start.grid
            offset, spread = grid.grouped(self.offset), scale.unsqueeze(-1)
            codes = (grid.grouped(start.weight) / spread + offset).round() + zero.unsqueeze(-1)
            codes = codes.clamp(0, grid.max_code).to(torch.uint8).reshape(start.weight.shape)
        return QuantizedWeight(QuantGrid(scale, zero, grid.bits, grid.sym, scale), self._keep(codes))

    def move(self, step: float) -> None:
        """Takes one step against the gradient's sign."""
        with torch.no_grad():
            for parameter, (low, high) in (
                (self.offset, (-0.5, 0.5)),
                (self.low, RANGE_BOUNDS),
                (self.high, RANGE_BOUNDS),
            ):
                if parameter.grad is not None:
                    parameter.sub_(step * parameter.grad.nan_to_num(0.0).sign()).clamp_(low, high)
                    parameter.grad = None

    def _scale_and_zero(self) -> tuple[Tensor, Tensor]:
        grid = self._start.grid
        if grid.sym:
            scale, zero = grid.scale * self.high, grid.zero_point
        else:
            below, above = (
                grid.zero_point * grid.scale * self.low,
                (grid.max_code - grid.zero_point) * grid.scale * self.high,
            )
            scale = (below + above) / grid.max_code
            zero = straight_through(torch.round, below / scale).clamp(0, grid.max_code)
        return straight_through(lambda s: storable(s, self._start.storage_dtype), scale), zero


class LearnableVector(Learnable):
    """A parameter that is stored as it is, such as a norm's weight or a bias.

    Steps are in units of its mean magnitude.
    """

    def __init__(self, start: Tensor, storage_dtype: torch.dtype):
        super().__init__()
        self._start, self._unit, self._dtype = start, start.abs().mean().clamp(min=1e-6), storage_dtype
        self.change = nn.Parameter(torch.zeros_like(start))
        self._adam = torch.optim.Adam([self.change])

    def forward(self) -> Tensor:
        """Returns the parameter in fp32, rounded to its storage dtype."""
        return straight_through(lambda x: x.to(self._dtype).float(), self._start + self._unit * self.change)

    def result(self) -> Tensor:
        """Returns the learned parameter in fp32, without a gradient."""
        return self().detach()

    def move(self, step: float) -> None:
        """Takes one step of Adam with learning rate `step`."""
        adam_step(self._adam, step)


def learn(
    soft: Mapping[str, Learnable],
    batch_loss: Callable[[Mapping[str, Tensor], int], float],
    validate: Callable[[Mapping[str, Tensor]], float],
    *,
    steps: int,
    rate: float,
    checks: int = 10,
) -> Learned:
    """Learns several tensors at once, and returns the best found on held-back data.

    Args:
        soft: name → what is learned; changed.
        batch_loss: (name → tensor, step) → loss of that step's batch, its gradient added to the tensors' `.grad`.
        validate: name → tensor → loss on samples that no batch holds. The tensors with the lowest one are returned.
        steps: at most.
        rate: size of the first step; it falls linearly to zero.
        checks: how often `validate` is called, spread evenly. Learning stops when more than half of them in a row found
            nothing better (a falling step makes most of the gain at the end).

    Returns:
        the best by `validate`: the start if nothing was better. What is not finite is never better.
    """

    def current() -> dict[str, Tensor]:
        return {name: module.leaf() for name, module in soft.items()}

    def results() -> dict[str, Any]:
        return {name: module.result() for name, module in soft.items()}

    with torch.no_grad():
        validation_loss = validate(current())
    found = Learned(results(), validation_loss, validation_loss)
    every, worse = max(steps // checks, 1), 0
    for step in range(steps):
        leaves = current()
        with torch.enable_grad():
            loss = batch_loss(leaves, step)
        for name, module in soft.items():  # one after the other: what a weight is made of is large
            gradient = leaves[name].grad
            if gradient is not None:
                with torch.enable_grad():
                    module().backward(gradient)
                module.move(rate * (1 - step / steps))
        if (step + 1) % every == 0 or step + 1 == steps:
            with torch.no_grad():
                validation_loss = validate(current())
            found.history.append((step + 1, loss, validation_loss))
            if math.isfinite(validation_loss) and not found.best <= validation_loss:
                found.best, found.results, worse = validation_loss, results(), 0
            else:
                worse += 1
            if worse > checks // 2:
                break
    return found


def adam_step(adam: torch.optim.Adam, step: float) -> None:
    """Takes one step of Adam with learning rate `step`; gradients that are not finite are zero."""
    (group,) = adam.param_groups
    group["lr"] = step
    for parameter in group["params"]:
        if parameter.grad is not None:
            parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
    adam.step()
    adam.zero_grad()


def straight_through(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Returns function(x) to the last bit, with the gradient of x."""
    return function(x).detach() + (x - x.detach())
