"""`ExpertsModule`: the forward pass of a stack of experts. `LinearExperts`: a stack whose weights linears hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .experts_layout import ExpertsLayout, experts_layout
from .experts_routing import route, weighted_sum
from .onloaded_linear import onloaded_linear

_Module = TypeVar("_Module", bound=nn.Module)
_Base = TypeVar("_Base", bound="ExpertsModule")


class ExpertsModule(nn.Module):
    """Runs the experts of a stack on the rows that are routed to them.

    What a model's own class does between the projections stays: `_apply_gate`, `act_fn`, `post_expert_norm`, biases.
    For that, [`in_place_of`] makes a subclass of it, whose forward this class replaces.
    """

    stack: ExpertsLayout
    act_fn: Callable[[Tensor], Tensor]
    post_expert_norm: Callable[[Tensor], Tensor]
    _apply_gate: Callable[[Tensor], Tensor]

    @classmethod
    def in_place_of(cls: type[_Base], original: nn.Module) -> _Base:
        """Makes a module with the class, attributes and other tensors of `original`, and without its 3-D parameters.

        Args:
            original: a stack of experts.

        Raises:
            ValueError: it is none.
        """
        layout = experts_layout(original)
        if layout is None:
            raise ValueError(f"{type(original).__name__} holds no stack of experts of a known kind")
        module = _copy(original, _empty(cls, type(original)), without=layout.parameters)
        module.stack = layout
        return module

    @classmethod
    def replacing(cls: type[_Base], other: ExpertsModule) -> _Base:
        """Makes a module like `other` without its experts' modules, such as the linears of [`LinearExperts`]."""
        names = [name for name in other._modules if name.isdecimal()]
        return _copy(other, _empty(cls, _original(type(other))), without=names)

    def project(self, x: Tensor, offsets: Tensor, projection: str) -> Tensor:
        """Multiplies the rows of each expert with its weight.

        Args:
            x: `[R, K]`, sorted by expert.
            offsets: int32 `[E + 1]`, where each expert's rows begin.
            projection: `"gate_proj"`, `"up_proj"` or `"down_proj"`.

        Returns:
            `[R, N]`; rows of no expert are zero.
        """
        raise NotImplementedError

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Runs the chosen experts on each token, and sums their outputs.

        Args:
            args: hidden states `[T, H]`, indices `[T, k]` of the chosen experts, and their weights `[T, k]`, as the
                model's own class takes them. Shared experts take hidden states and weights `[T, E]`. A class without
                routing takes `[E * T, H]` alone.
            kwargs: the same by name.

        Returns:
            `[T, H]` in the dtype of the hidden states.

        Raises:
            ValueError: an index is below 0 or above the number of choices. (That number stands for no expert.)
        """
        values = [*args, *(kwargs[name] for name in self.stack.arguments[len(args) :])]
        hidden, count = _rows(values[0], self.stack.hidden_size), self.stack.num_experts
        if not self.stack.is_routed and not self.stack.is_shared:
            offsets = torch.arange(count + 1, dtype=torch.int32, device=hidden.device) * (hidden.shape[0] // count)
            return self._experts(hidden, offsets, None)
        index, weights = routing(self.stack, values, hidden.shape[0])
        x, offsets, order = route(hidden, index, count, self.stack.num_choices)
        ids = index.reshape(-1)[order].long() if self.stack.has_bias or self.stack.identities else None  # uint8: a mask
        rows = self._experts(x, offsets, ids)
        if ids is not None and self.stack.identities:
            rows = torch.where(((ids >= count) & (ids < self.stack.num_choices)).unsqueeze(-1), x, rows)
        summed = weighted_sum(rows, weights, order).to(hidden.dtype)
        return summed if values[0].ndim == summed.ndim else summed.view(values[0].shape)

    def _experts(self, x: Tensor, offsets: Tensor, ids: Tensor | None) -> Tensor:
        """Runs every expert on its rows: `[R, H]` to `[R, H]`. `ids` are the rows' experts, for biases."""
        ids = None if ids is None else ids.clamp(max=self.stack.num_experts - 1)
        hidden = self.activate([self.project(x, offsets, name) for name in self.stack.projections[:-1]], ids)
        out = self._biased(self.project(hidden, offsets, "down_proj"), "down_proj_bias", ids)
        return self.post_expert_norm(out) if self.stack.has_norm else out

    def activate(self, projected: Sequence[Tensor], ids: Tensor | None) -> Tensor:
        """Computes what the down projection reads, `[R, I]`.

        Args:
            projected: outputs `[R, I]` of gate and up, or of up alone.
            ids: int64 `[R]`, the expert of each row, for biases; None where there are none.
        """
        if not self.stack.has_gate:
            return self.act_fn(self._biased(projected[0], "up_proj_bias", ids))
        gate, up = projected
        if not hasattr(self, "_apply_gate"):
            return self.act_fn(gate) * up
        return self._apply_gate(self._biased(self.stack.fuse(gate, up), "gate_up_proj_bias", ids))

    def _biased(self, x: Tensor, name: str, ids: Tensor | None) -> Tensor:
        if not self.stack.has_bias or ids is None:
            return x
        bias: Tensor = getattr(self, name)  # not `get_parameter`: `functional_call` puts plain tensors in its place
        return x + bias[ids].to(x.dtype)

    def _weight_stand_in(self) -> Tensor:
        """Makes a tensor without elements, which shows dtype and device to code that reads a weight of the stack.

        It is marked so that a model's `_init_weights` leaves it alone.
        """
        probe = next(self.parameters())
        tensor = torch.empty(0, dtype=getattr(self, "compute_dtype", probe.dtype), device=probe.device)
        if not torch.compiler.is_compiling():
            tensor._is_hf_initialized = True  # type: ignore[attr-defined]
        return tensor

    gate_up_proj = gate_proj = up_proj = down_proj = property(_weight_stand_in)

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            _empty,
            (type(self).__bases__[0], _original(type(self))),
            self.__dict__,
        )  # pickle finds no class made here


def dense_like(module: ExpertsModule, without: Collection[str]) -> nn.Module:
    """Makes a module of the model's own class with the attributes and tensors of `module`, except `without`."""
    original = _original(type(module))
    dense = original.__new__(original)
    nn.Module.__init__(dense)
    return _copy(module, dense, without={*without, "stack"})


def routing(layout: ExpertsLayout, values: Sequence[Tensor], tokens: int) -> tuple[Tensor, Tensor]:
    """Returns the indices `[T, k]` of each token's experts, and their weights `[T, k]`.

    Args:
        layout: of a stack that is routed or shared.
        values: arguments of its forward.
        tokens: T.

    Raises:
        ValueError: a token has more or fewer weights than experts.
    """
    index, weights = values[1], _rows(values[-1], values[-1].shape[-1])
    if layout.is_routed:
        if index.shape[-1] != weights.shape[-1]:
            raise ValueError(
                f"a token needs as many weights as experts, got {weights.shape[-1]} for {index.shape[-1]} experts"
            )
        index = _rows(index, index.shape[-1])
        if not torch.compiler.is_compiling() and not tokens == index.shape[0] == weights.shape[0]:
            raise ValueError(
                f"{tokens} tokens need as many rows of experts and weights, got {index.shape[0]} and {weights.shape[0]}"
            )
        return index, weights
    return torch.arange(layout.num_experts, device=weights.device).expand(tokens, -1), weights


def _rows(x: Tensor, columns: int) -> Tensor:
    """Returns `x` as `[R, columns]`; a view takes time even where nothing changes."""
    return x if x.shape[1:] == (columns,) else x.reshape(-1, columns)


class LinearExperts(ExpertsModule):
    """A stack whose experts are modules `0`, `1`, … of linears `gate_proj`, `up_proj` and `down_proj`.

    It stands in the place of a stack while that is calibrated: all that treats an `nn.Linear` treats an expert. The
    linears' weights are views of the stack's parameters, so nothing is copied.
    """

    @classmethod
    def of(cls, original: nn.Module) -> LinearExperts:
        """Makes the linears of a stack.

        Args:
            original: a stack of experts, in full precision.

        Raises:
            ValueError: it is none.
        """
        module = cls.in_place_of(original)
        for index in range(module.stack.num_experts):
            expert = nn.Module()
            for name in module.stack.projections:
                weight = module.stack.weight(original, index, name)
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
                linear.weight = nn.Parameter(weight, requires_grad=False)
                expert.add_module(name, linear)
            module.add_module(str(index), expert)
        return module.train(original.training)

    def project(self, x: Tensor, offsets: Tensor, projection: str) -> Tensor:
        """Runs the linear of each expert that has rows; see [`ExpertsModule.project`]."""
        out = x.new_zeros(len(x), self.stack.shape(projection)[0])
        for index, (start, stop) in enumerate(pairwise(offsets.tolist())):
            if start < stop:
                linear = self.get_submodule(f"{index}.{projection}")
                # A block in fp32 shares the weights of its experts. Any other linear is called, for its hooks.
                if type(linear) is nn.Linear and (linear.weight.dtype, linear.weight.device) != (x.dtype, x.device):
                    out[start:stop] = onloaded_linear(x[start:stop], linear.weight)
                else:
                    out[start:stop] = linear(x[start:stop])
        return out


@cache
def _subclass(base: type[ExpertsModule], original: type[nn.Module]) -> type[ExpertsModule]:
    """Makes `base` with the model's own class behind it, whose methods it can call."""
    return type(f"{base.__name__}Of{original.__name__}", (base, original), {"__doc__": base.__doc__})


def _original(made: type[nn.Module]) -> type[nn.Module]:
    """Returns the model's own class behind one that was made here."""
    return made.__bases__[1]


def _empty(base: type[_Base], original: type[nn.Module]) -> _Base:
    made = _subclass(base, original)  # type: ignore[arg-type]
    module = made.__new__(made)
    nn.Module.__init__(module)
    assert isinstance(module, base)
    return module


def _copy(source: nn.Module, target: _Module, without: Collection[str]) -> _Module:
    """Gives `target` the attributes, tensors and modules of `source`, except `without`."""
    values = {name: value for name, value in vars(source).items() if name not in without}
    for kind in ("_parameters", "_buffers", "_modules"):
        values[kind] = {name: value for name, value in vars(source)[kind].items() if name not in without}
    vars(target).update(values)
    return target
