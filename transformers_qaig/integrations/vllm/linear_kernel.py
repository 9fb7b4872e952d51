"""Registers this package's CPU kernels with vLLM, for compressed-tensors files. Importing this registers them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vllm.model_executor.kernels.linear import MPLinearKernel, MPLinearLayerConfig, register_linear_kernel
from vllm.platforms import PlatformEnum

from ...formats.packing import SCALE_DTYPES
from ...formats.scheme import BITS, MIN_GROUP_SIZE, WeightScheme
from ..engines.loaded_shards import TENSORS
from ..engines.shards import packed_linear


class QAIGLinearKernel(MPLinearKernel):  # type: ignore[misc]
    """Runs linears of 2 to 8 bits that vLLM loaded from `pack-quantized` files.

    vLLM asks kernels in the order in which they were registered, so its own come first where they claim a layer.
    """

    @classmethod
    def get_min_capability(cls) -> int:
        """Returns a number below every CUDA capability."""
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Returns whether a layer can be run, and why not."""
        kind, columns = c.weight_type, c.partition_weight_shape[0]
        bits = kind.size_bits
        if kind.is_signed() or kind.is_floating_point() or bits not in BITS:
            return False, f"{kind} is no unsigned integer of {BITS[0]} to {BITS[-1]} bits"
        if kind.bias != (0 if c.zero_points else 1 << bits - 1):
            return False, f"{kind} has another zero than 2^(bits - 1), and no zero points"
        if c.group_size != -1 and (c.group_size < MIN_GROUP_SIZE or columns % c.group_size):
            return False, f"groups of {c.group_size} are below {MIN_GROUP_SIZE}, or do not divide {columns} columns"
        if c.act_type not in SCALE_DTYPES:
            return False, f"activations are {c.act_type}"
        return True, None

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Makes the packed module, in the layout of the device's kernels.

        Raises:
            NotImplementedError: the words are those of GPTQ or AWQ, or inputs are rounded in another way than ours.
        """
        c = self.config
        columns, rows = c.partition_weight_shape
        loaded = {
            "weight_packed": getattr(layer, self.w_q_name),
            "weight_scale": getattr(layer, self.w_s_name),
            "weight_zero_point": getattr(layer, self.w_zp_name or "", None),
        }
        if loaded["weight_packed"].input_dim != 1:
            raise NotImplementedError(
                f"{type(self).__name__} reads compressed-tensors files, not GPTQ or AWQ ones: add its name to "
                "VLLM_DISABLED_KERNELS, and vLLM says which kernels read this file."
            )
        activation_bits = _activation_bits(layer)
        scheme = WeightScheme(c.weight_type.size_bits, c.group_size, not c.zero_points, activation_bits=activation_bits)
        tensors = {name: tensor.data for name, tensor in loaded.items() if tensor is not None and name in TENSORS}
        tensors["weight_shape"] = torch.tensor([rows, columns])  # a fused layer holds that of its last shard
        if scheme.sym:
            tensors.pop("weight_zero_point", None)
        device = tensors["weight_packed"].device
        layer.packed = packed_linear(self.w_q_name, scheme, columns, rows, tensors, device)
        layer.packed.to_kernel_layout()
        for name in (self.w_q_name, self.w_s_name, self.w_zp_name):
            if name is not None and getattr(layer, name, None) is not None:
                delattr(layer, name)

    def apply_weights(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Computes the layer."""
        out = layer.packed(x)  # type: ignore[operator]
        return out if bias is None else out + bias


def _activation_bits(layer: nn.Module) -> int:
    """Returns to how many bits inputs are rounded. vLLM's configuration of a kernel lacks that; its layer has it."""
    rounding = getattr(layer, "_humming_input_quant_config", None)
    if rounding is None:
        return 16
    bits, strategy = rounding.get("num_bits"), rounding.get("strategy")
    is_int, is_sym = rounding.get("type", "int") == "int", rounding.get("symmetric", True)
    if (bits, strategy, is_int, is_sym) != (8, "token", True, True):
        kind = f"{bits} bits per {strategy}"
        kind += ("" if is_int else ", floating point") + ("" if is_sym else ", asymmetric")
        raise NotImplementedError(
            f"{QAIGLinearKernel.__name__} rounds inputs to 8 bits per token, and this file asks for {kind}: "
            "quantize with symmetric integers of 8 bits per token, or with none."
        )
    return 8


register_linear_kernel(QAIGLinearKernel, PlatformEnum.CPU, "mp")
