"""Finds how a module stores a stack of experts, by its attributes and by the shapes of its 3-D parameters."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..formats.experts import MOST_EXPERTS

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""Names of an expert's weights in a plan: `….experts.{e}.gate_proj`."""
_INDEX = r"[0-9]{1,9}"
SPANS = rf"{_INDEX}(?:-{_INDEX})?(?:,{_INDEX}(?:-{_INDEX})?)*"
"""An expert's index, or several as in `0-3,7`."""
_PATH = re.compile(rf"(?P<stack>.+)\.(?P<expert>\*|{SPANS})\.(?P<projection>{'|'.join(PROJECTIONS)})")
_ALL, _SHARED, _ROUTED = 1, 2, 3  # arguments of the forward: hidden states; with weights; with indices and weights


@dataclass(frozen=True)
class ExpertsLayout:
    """How a module stores its experts.

    Attributes:
        num_experts: E.
        hidden_size: channels of an expert's input and output.
        intermediate_size: channels between its projections.
        fused: whether gate and up are one parameter, `gate_up_proj`.
        transposed: whether a weight is `[K, N]`, not `[N, K]`.
        interleaved: whether the rows of a fused parameter are gate, up, gate, up, not all of gate before all of up.
        has_gate: whether there is a gate.
        has_bias: whether `gate_up_proj_bias` (or `up_proj_bias`) and `down_proj_bias` are added.
        has_norm: whether `post_expert_norm` follows each expert.
        identities: experts after the E ones that return a token as it is. `gate_up_proj` has unused rows for them.
        arguments: names of the arguments of the module's forward.
    """

    num_experts: int
    hidden_size: int
    intermediate_size: int
    fused: bool
    transposed: bool
    interleaved: bool
    has_gate: bool
    has_bias: bool
    has_norm: bool
    identities: int
    arguments: tuple[str, ...]

    @property
    def projections(self) -> tuple[str, ...]:
        """The names of an expert's weights."""
        return PROJECTIONS if self.has_gate else PROJECTIONS[1:]

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the 3-D parameters that hold them."""
        return ("gate_up_proj", "down_proj") if self.fused else self.projections

    def parameter_of(self, projection: str) -> str:
        """Returns the name of the parameter that holds a projection."""
        return projection if projection in self.parameters else "gate_up_proj"

    @property
    def is_routed(self) -> bool:
        """Whether the forward takes hidden states, indices and weights of the chosen experts."""
        return len(self.arguments) == _ROUTED

    @property
    def is_shared(self) -> bool:
        """Whether every token goes to all experts: the forward takes hidden states and weights `[..., E]`.

        One that is neither routed nor shared takes `[E * T, H]`: the rows of each expert, one expert after the other.
        """
        return len(self.arguments) == _SHARED

    @property
    def num_choices(self) -> int:
        """What a router chooses among: the experts, and those that return a token as it is."""
        return self.num_experts + self.identities

    def shape(self, projection: str) -> tuple[int, int]:
        """Returns output and input channels of a projection."""
        wide, narrow = self.hidden_size, self.intermediate_size
        return (wide, narrow) if projection == "down_proj" else (narrow, wide)

    def stacked_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Returns the names and shapes of the 3-D parameters."""
        shapes = {}
        for name in self.parameters:
            rows, columns = self.shape(name)
            rows *= 2 if name == "gate_up_proj" else 1
            count = self.num_experts if name == "down_proj" else self.num_choices
            shapes[name] = (count, *((columns, rows) if self.transposed else (rows, columns)))
        return shapes

    def weight(self, module: nn.Module, expert: int, projection: str) -> Tensor:
        """Returns a view `[N, K]` of an expert's weight in the stack."""
        name = self.parameter_of(projection)
        stacked = module.get_parameter(name).data[expert]
        rows = stacked.t() if self.transposed else stacked
        if name == projection:
            return rows
        second = projection == "up_proj"
        if self.interleaved:
            return rows[second::2]
        size = self.intermediate_size
        return rows[size:] if second else rows[:size]

    def fuse(self, gate: Tensor, up: Tensor) -> Tensor:
        """Joins the outputs of gate and up along their last dimension, as the module's `_apply_gate` takes them."""
        if self.interleaved:
            return torch.stack((gate, up), -1).flatten(-2)
        return torch.cat((gate, up), -1)


def experts_layout(module: nn.Module) -> ExpertsLayout | None:
    """Returns how `module` stores a stack of experts; None if it is none, or of an unknown kind.

    A class that Transformers' `use_experts_implementation` decorates says so in its attributes. Of others, the shapes
    of the parameters and the arguments of the forward tell.

    Args:
        module: may be on the meta device.
    """
    stacked = {name: tuple(p.shape) for name, p in module.named_parameters(recurse=False) if p.ndim == 3}
    down, fused = stacked.get("down_proj"), "gate_up_proj" in stacked
    first = stacked.get("gate_up_proj") or stacked.get("up_proj")
    if down is None or first is None or first[0] - down[0] not in (0, _identities(module, first[0])):
        return None
    gated = fused or "gate_proj" in stacked
    if "gate_proj" in stacked and (fused or stacked["gate_proj"] != first):
        return None
    wanted = {"gate_up_proj", "down_proj"} if fused else {"gate_proj", "up_proj", "down_proj"} if gated else set()
    if set(stacked) != (wanted or {"up_proj", "down_proj"}):
        return None
    arguments = tuple(inspect.signature(type(module).forward).parameters)[1:]
    if len(arguments) not in (_ALL, _SHARED, _ROUTED) or not _can_gate(module, gated):
        return None
    transposed = _is_transposed(module, first, down, fused, len(arguments) == _SHARED)
    if transposed is None:
        return None
    hidden, inner = (down[2], down[1]) if transposed else (down[1], down[2])
    rows, columns = (first[2], first[1]) if transposed else (first[1], first[2])
    if rows != inner * (1 + fused) or columns != hidden or 0 in (*first, *down) or first[0] > MOST_EXPERTS:
        return None
    has_bias = bool(getattr(module, "has_bias", "down_proj_bias" in module._parameters))
    return ExpertsLayout(
        num_experts=down[0],
        hidden_size=hidden,
        intermediate_size=inner,
        fused=fused,
        transposed=transposed,
        interleaved=fused and not getattr(module, "is_concatenated", True),
        has_gate=gated,
        has_bias=has_bias,
        has_norm=bool(getattr(module, "has_post_expert_norm", False)),
        identities=first[0] - down[0],
        arguments=arguments,
    )


def _identities(module: nn.Module, count: int) -> int:
    """Returns how many of `count` choices are no experts, as a class with an identity says; 0 for other classes."""
    has_identity = any(isinstance(child, nn.Identity) for child in module.children())
    return count - module.get_parameter("down_proj").shape[0] if has_identity else 0


def _is_transposed(
    module: nn.Module, first: tuple[int, ...], down: tuple[int, ...], fused: bool, shared: bool
) -> bool | None:
    said = getattr(module, "is_transposed", None)
    if said is not None:
        return bool(said)
    if fused:
        return first[1] != 2 * down[2] or first[2] != down[1]
    if not shared or first[1] == first[2]:
        return None  # both would fit
    return not _takes(module, first[2])


def _takes(module: nn.Module, channels: int) -> bool:
    """Whether a module whose experts are shared takes tokens of so many channels: tried without computing anything."""
    tensors = {name: tensor.to("meta") for name, tensor in module.named_parameters()}
    experts = len(tensors["down_proj"])
    inputs = (torch.empty(1, shape, dtype=tensors["down_proj"].dtype, device="meta") for shape in (channels, experts))
    try:
        torch.func.functional_call(module, tensors, tuple(inputs))
    except Exception:  # a class that is no stack of experts may raise every kind
        return False
    return True


def _can_gate(module: nn.Module, gated: bool) -> bool:
    return callable(getattr(module, "act_fn", None)) or (gated and hasattr(module, "_apply_gate"))


def find_experts(model: nn.Module) -> dict[str, ExpertsLayout]:
    """Finds every stack of experts in a model, by path; packed ones too."""
    found = {path: _made_here(module) or experts_layout(module) for path, module in model.named_modules()}
    return {path: layout for path, layout in found.items() if layout is not None}


def _made_here(module: nn.Module) -> ExpertsLayout | None:
    """Returns the layout that a packed stack, or one of linears, was made from."""
    layout = vars(module).get("stack")
    return layout if isinstance(layout, ExpertsLayout) else None


def expert_path(stack: str, expert: int | str, projection: str) -> str:
    """Returns the path of an expert's weight in a plan."""
    return f"{stack}.{expert}.{projection}"


def split_path(path: str) -> tuple[str, str, str] | None:
    """Splits the path of an expert's weight into stack, expert and projection; None for another path."""
    match = _PATH.fullmatch(path)
    return None if match is None else (match["stack"], match["expert"], match["projection"])


def count_weights(plan: Iterable[str]) -> dict[str, int]:
    """Counts the weights that each path of a plan names, as `….experts.0-3,7.down_proj` names five.

    `*` stands for as many as the longest stack in the plan has; for one where no path says how many there are.
    """
    counts: dict[str, int] = {}
    stacks: Counter[tuple[str, str]] = Counter()
    for path in plan:
        parts = split_path(path)
        if parts is not None and parts[1] == "*":
            counts[path] = 0
            continue
        spans = [] if parts is None else [span.partition("-") for span in parts[1].split(",")]
        counts[path] = sum(max(int(last or first) - int(first) + 1, 1) for first, _, last in spans) if spans else 1
        if parts is not None:
            stacks[parts[0], parts[2]] += counts[path]
    experts = max(stacks.values(), default=1)
    return {path: count or experts for path, count in counts.items()}


def count_open_stacks(counts: Mapping[str, int]) -> int:
    """Counts the paths with `*` for which [`count_weights`] could not tell how many experts there are."""
    return sum(".*." in path and count == 1 for path, count in counts.items())
