"""`QAIGExperts`: replaces a stack of experts; it holds packed integers instead of 3-D weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..formats.experts import ExpertWeights
from ..formats.packing import CHECKPOINT_LAYOUT, CPU_LAYOUT, CUDA_LAYOUT, KERNEL_BITS, SCALE_DTYPES, pack_zero_point
from ..formats.reference import Weight, dequantize
from ..kernels import extension
from . import experts_ops  # noqa: F401  (registers the operators)
from .experts_module import ExpertsModule, LinearExperts, dense_like
from .experts_routing import has_no_derivatives
from .linear import QAIGLinear
from .ops import load_kernels
from .packed_tensors import PackedTensors, frozen, has_offload_hook, one_thread_at_a_time
from .projection_scheme import ProjectionScheme

TENSORS = ("packed", "scale", "zero_point")
"""What a projection's tensors are called: `down_proj_packed`. Converters of `down_proj` leave such names alone."""
_OWN = ("schemes", "compute_dtype", "layout")


class QAIGExperts(ExpertsModule, PackedTensors):
    """A stack of experts whose weights are packed to `bits` bits per value; experts may differ in `bits`.

    For each projection `gate_proj`, `up_proj`, `down_proj` (or the last two) of E experts with K inputs and N outputs:

    | tensor                   | dtype                   | shape                        | holds                        |
    | ------------------------ | ----------------------- | ---------------------------- | ---------------------------- |
    | `down_proj_packed`       | int32                   | [Σ N ceil(K bits / 32)]      | codes, expert after expert   |
    | `down_proj_scale`        | float16 / bfloat16 / 32 | [E, N, G]                    | step of each group           |
    | `down_proj_zero_point`   | int32                   | [Σ ceil(N bits / 32) G]      | zero points; None if sym     |

    Words and zero points of one expert are those of [`PackedModule`], flattened. This is the checkpoint layout.
    `to_kernel_layout` converts them to the layout of the device's kernels, and saving converts them back. As in
    `PackedModule`, all of them are frozen parameters, and a dtype cast does not reach them.
    """

    schemes: dict[str, ProjectionScheme]

    @classmethod
    def like(
        cls, original: nn.Module, schemes: Mapping[str, ProjectionScheme], device: torch.device | str | None = None
    ) -> QAIGExperts:
        """Makes packed experts without content in the place of a stack.

        Args:
            original: the stack; its dtype is that of the scales.
            schemes: projection → how it is stored.
            device: of the packed tensors; None for that of the stack.

        Raises:
            ValueError: the stack cannot be stored so.
        """
        example = next(p for p in original.parameters(recurse=False) if p.ndim == 3)
        module = cls.in_place_of(original)
        module.schemes, module.compute_dtype, module.layout = dict(schemes), example.dtype, CHECKPOINT_LAYOUT
        if example.dtype not in SCALE_DTYPES:
            raise ValueError(f"experts must be of {SCALE_DTYPES}, got {example.dtype}")
        for projection, scheme in module.schemes.items():
            shapes = scheme.shapes(module.stack, projection)
            device = example.device if device is None else device
            sizes = ((shapes.words,), torch.int32), (shapes.scale, example.dtype), (shapes.zero_shape, torch.int32)
            module._set(projection, *(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in sizes))
        return module

    @classmethod
    def from_linears(cls, linears: LinearExperts) -> QAIGExperts:
        """Joins the packed linears of a stack.

        Args:
            linears: each linear is a [`QAIGLinear`].
        """
        module = cls.replacing(linears)
        module.schemes, module.layout = {}, CHECKPOINT_LAYOUT
        for projection in module.stack.projections:
            layers = [_packed_linear(linears, f"{e}.{projection}") for e in range(module.stack.num_experts)]
            module.compute_dtype = layers[0].compute_dtype
            module.schemes[projection] = ProjectionScheme.of([layer.scheme for layer in layers], projection)
            zeros = [layer.weight_zero_point for layer in layers]
            module._set(
                projection,
                torch.cat([layer.weight_packed.data.flatten() for layer in layers]),
                torch.stack([layer.weight_scale.data for layer in layers]),
                torch.cat([zero.data.flatten() for zero in zeros if zero is not None] or [torch.empty(0)]),
            )
        return module

    def _set(self, projection: str, packed: Tensor, scale: Tensor, zero: Tensor) -> None:
        zero_point = None if self.schemes[projection].sym else frozen(zero)
        for name, tensor in zip(TENSORS, (frozen(packed), frozen(scale), zero_point)):
            self.register_parameter(f"{projection}_{name}", tensor)

    def project(self, x: Tensor, offsets: Tensor, projection: str) -> Tensor:
        """Multiplies the rows of each expert with its packed weight; see [`ExpertsModule.project`]."""
        tensors, scheme = self._parameters, self.schemes[projection]
        scale = tensors[f"{projection}_scale"]
        assert scale is not None
        arguments = (
            x,
            offsets,
            tensors[f"{projection}_packed"],
            scale,
            tensors[f"{projection}_zero_point"],
            scheme.short_bits,
            self.stack.shape(projection)[0],
            scheme.group_size,
            scheme.activation_bits,
            self.layout,
        )
        if not has_no_derivatives(x, scale):
            return torch.ops.qaig.experts_linear.default(*arguments)
        with torch._C._AutoDispatchBelowAutograd():  # the rules in Python take as long as a small product
            return torch.ops.qaig.experts_linear.default(*arguments)

    def weights(self, projection: str) -> ExpertWeights:
        """Returns the packed tensors of a projection, and the sizes needed to read them."""
        packed, scale, zero = (getattr(self, f"{projection}_{name}") for name in TENSORS)
        scheme, sizes = self.schemes[projection], self.stack.shape(projection)
        return ExpertWeights(
            packed, scale, zero, scheme.bits, self.stack.num_experts, *sizes, scheme.group_size, self.layout
        )

    def dequantize(self, expert: int, projection: str, dtype: torch.dtype | None = None) -> Tensor:
        """Returns the dequantized weight `[N, K]` of one expert in `dtype` (None: the compute dtype)."""
        (weight,) = self.weights(projection).experts([expert])
        return dequantize(weight, dtype or self.compute_dtype)

    def to_dense(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Makes a stack of the model's own class from the dequantized weights.

        Args:
            dtype: of the weights; None for the compute dtype.
        """
        layout = self.stack
        own = {f"{projection}_{name}" for projection in self.schemes for name in TENSORS}
        dense = dense_like(self, without={*own, *_OWN})
        for name, shape in layout.stacked_shapes().items():
            stack = torch.zeros(shape, dtype=dtype or self.compute_dtype, device=self.device)
            dense.register_parameter(name, nn.Parameter(stack))
        for projection in layout.projections:
            for expert in range(layout.num_experts):
                layout.weight(dense, expert, projection).copy_(self.dequantize(expert, projection, dtype))
        return dense

    # -- layouts

    @one_thread_at_a_time
    def to_kernel_layout(self) -> bool:
        """Converts the packed tensors to the layout of the device's kernels, and returns whether they are in it now.

        Nothing happens where the experts are offloaded, or the device, the bits or the installation have no kernels.
        """
        if self.layout != CHECKPOINT_LAYOUT:
            return True
        bits = {width for scheme in self.schemes.values() for width in scheme.bits}
        layout = (
            CHECKPOINT_LAYOUT if has_offload_hook(self) or not bits <= set(KERNEL_BITS) else _kernel_layout(self.device)
        )
        if layout == CHECKPOINT_LAYOUT:
            return False
        self._convert(layout)
        return True

    @one_thread_at_a_time
    def to_checkpoint_layout(self) -> None:
        """Converts the packed tensors back to the checkpoint layout."""
        if self.layout != CHECKPOINT_LAYOUT:
            self._convert(CHECKPOINT_LAYOUT)

    def _convert(self, layout: int) -> None:
        converted = {projection: self._converted(projection) for projection in self.schemes}
        for projection, tensors in converted.items():
            self._set(projection, *tensors)
        self.layout = layout

    def _in_checkpoint_layout(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for projection, scheme in self.schemes.items():
            names = (f"{projection}_{name}" for name in TENSORS[: 3 - scheme.sym])
            found.update(zip(names, self._converted(projection)))
        return found

    def _converted(self, projection: str) -> tuple[Tensor, Tensor, Tensor]:
        """Returns a projection's tensors in the kernels' layout or, from there, in the checkpoint layout."""
        weights = self.weights(projection)
        words, scales, zeros = zip(*(_repacked(weight) for weight in weights.experts(range(weights.num_experts))))
        packed = torch.cat([each.flatten() for each in words])
        if self.layout != CHECKPOINT_LAYOUT:
            return packed, torch.stack(scales), torch.cat([each.flatten() for each in zeros])
        extension.move_to_huge_pages(packed)
        return packed, torch.stack(scales), torch.stack(zeros)

    def _packed_names(self) -> Iterator[str]:
        """Yields the names of the packed tensors."""
        for projection, scheme in self.schemes.items():
            yield from (f"{projection}_{name}" for name in TENSORS if name != "zero_point" or not scheme.sym)

    def extra_repr(self) -> str:
        """Sizes and format, for `print(model)`."""
        layout = self.stack
        stored = ", ".join(
            f"{name}: {sorted(set(scheme.bits))} bits, group_size={scheme.group_size}, sym={scheme.sym}"
            for name, scheme in self.schemes.items()
        )
        return f"{layout.num_experts} experts, {layout.hidden_size}, {layout.intermediate_size}, {stored}"


def _packed_linear(linears: LinearExperts, path: str) -> QAIGLinear:
    layer = linears.get_submodule(path)
    assert isinstance(layer, QAIGLinear)
    return layer


def _repacked(weight: Weight) -> tuple[Tensor, Tensor, Tensor]:
    """Returns one expert's tensors in the kernels' layout or, from there, in the checkpoint layout."""
    packed, scale, zero = torch.ops.qaig.repack(*weight)
    if weight.layout != CHECKPOINT_LAYOUT and weight.zero is not None:
        zero = pack_zero_point(zero, weight.bits)
    return packed, scale, zero


def _kernel_layout(device: torch.device) -> int:
    """Returns the layout that a device's kernels for experts read; without kernels, `CHECKPOINT_LAYOUT`."""
    layout = {"cpu": CPU_LAYOUT, "cuda": CUDA_LAYOUT}.get(device.type, CHECKPOINT_LAYOUT)
    if layout == CHECKPOINT_LAYOUT or not load_kernels(device):
        return CHECKPOINT_LAYOUT
    return layout if extension.has_kernel("experts_linear", device.type) else CHECKPOINT_LAYOUT
