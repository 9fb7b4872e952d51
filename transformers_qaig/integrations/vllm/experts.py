"""vLLM's method for a stack of experts, whose tensors are whole in the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase

from ...nn.experts import QAIGExperts
from ...nn.experts_checks import check_packed_experts
from ...nn.packed_tensors import frozen
from ...nn.projection_scheme import ProjectionScheme
from ..engines.methods import refuse_sharding
from .experts_names import GUARDED, engine_name, file_name
from .experts_stack import EmptyStack

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu2": lambda x: F.relu(x).square(),
}
"""vLLM's names of what follows the first projection."""


class QAIGExpertsMethod(FusedMoEMethodBase):  # type: ignore[misc]
    """Runs the experts that vLLM's router chose, from packed tensors. Experts may differ in their bits.

    Args:
        name: of the stack.
        moe: vLLM's configuration of the layer.
        schemes: projection → how it is stored.
    """

    def __init__(self, name: str, moe: Any, schemes: Mapping[str, ProjectionScheme]):
        super().__init__(moe)
        self.name, self.schemes = name, schemes
        self.loaded: dict[str, Tensor] = {}

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **_: Any,
    ) -> None:
        """Lets the layer keep what vLLM loads into it.

        Raises:
            NotImplementedError: the experts compute something that packed ones do not, or are sharded.
        """
        refuse_sharding(self.name, self.moe.moe_parallel_config)
        self._refuse_unknown(layer)
        stack = EmptyStack(
            num_experts,
            hidden_size,
            intermediate_size_per_partition,
            gated=layer.activation.is_gated,
            activation=ACTIVATIONS[_activation(layer)],
            dtype=params_dtype,
        )
        self.experts = QAIGExperts.like(stack, self.schemes)
        if set(self.schemes) != set(self.experts.stack.projections):
            raise ValueError(
                f"{self.name} has {', '.join(self.experts.stack.projections)} in vLLM, and the plan packs "
                f"{', '.join(self.schemes)}: it is damaged, or of another model."
            )
        self.device = torch.empty(0).device  # vLLM's default while it makes layers
        # vLLM looks for weights of single experts, or for dense stacks; the runner asks its layer by this name.
        layer.load_weights = self.load_weights
        # Some models load experts by code of their own, which looks for parameters.
        for name in (*map(engine_name, self.experts._parameters), *GUARDED):
            parameter = nn.Parameter(torch.empty(0), requires_grad=False)
            parameter.weight_loader = partial(self._load, name)  # type: ignore[attr-defined]
            layer.register_parameter(name, parameter)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
        """Keeps the tensors of the stack, and yields their names.

        Raises:
            ValueError: the file holds another weight for it.
        """
        for name, tensor in weights:
            self._load(name, None, tensor)
            if file_name(name) in self.loaded:
                yield name

    def _load(self, name: str, _: Any, tensor: Tensor, *__: Any, **___: Any) -> bool:
        """Keeps a tensor; vLLM asks with more arguments for a weight of one expert, and whether it was loaded."""
        if file_name(name) in self.experts._parameters:
            self.loaded[file_name(name)] = tensor
        elif tensor.numel():  # the guard has no elements
            raise ValueError(f"{self.name} is packed, and its file holds {name}, too: it is damaged.")
        return True

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Fills the packed experts, and converts them to the layout of the device's kernels."""
        for name in (*map(engine_name, self.experts._parameters), *GUARDED):
            delattr(layer, name)
        for name in dict(self.experts.named_parameters()):
            if name not in self.loaded:
                raise ValueError(f"{self.name}: the checkpoint holds no {name} for it: it is damaged.")
            self.experts.register_parameter(name, frozen(self.loaded[name].to(self.device, copy=True)))
        self.loaded = {}
        check_packed_experts(self.experts, self.name, negative_scales=False)
        self.experts.compute_dtype = self.experts.get_parameter("down_proj_scale").dtype
        self.experts.to_kernel_layout()
        layer.packed = self.experts

    def get_fused_moe_quant_config(self, layer: nn.Module) -> None:
        """Returns nothing: no kernel of vLLM runs these experts."""

    def apply(
        self,
        layer: Any,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any = None,
        shared_experts_input: Tensor | None = None,
    ) -> Tensor:
        """Computes the chosen experts. The runner has computed shared ones."""
        return layer.packed(x, topk_ids.long(), topk_weights)

    def _refuse_unknown(self, layer: Any) -> None:
        unknown = {
            f"the activation {_activation(layer)!r}": _activation(layer) not in ACTIVATIONS,
            "biases": self.moe.has_bias,
            "a limit of the gate": layer.swiglu_limit is not None,
            "weights of the router at the input": layer.apply_router_weight_on_input,
            "expert parallelism": self.moe.moe_parallel_config.use_ep,
        }
        found = [what for what, there in unknown.items() if there]
        if found:
            raise NotImplementedError(
                f"{self.name}: packed experts with {', '.join(found)} are not served by vLLM yet. "
                "Serve this model with Transformers, or quantize it with the experts left out."
            )


def _activation(layer: Any) -> str:
    return layer.activation.value.removesuffix("_no_mul")
