"""Declares the operators `torch.ops.qaig.*` and their arguments, which every backend shares.

`layout` says how the packed tensors are laid out: `CHECKPOINT_LAYOUT`, `CPU_LAYOUT` or `CUDA_LAYOUT`. The last two are
described in `csrc/cpu/layout.h` and `csrc/cuda/layout.h`; `repack` makes and undoes them.
"""

import torch

LIBRARY = torch.library.Library("qaig", "DEF")
for _name in ("linear", "linear_reference"):
    LIBRARY.define(
        f"{_name}(Tensor x, Tensor packed, Tensor scale, Tensor? zero, Tensor? bias, int rotation_block, "
        "int rotation_seed, int out_features, int bits, int group_size, int activation_bits, int layout) -> Tensor",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
LIBRARY.define(
    "linear_many(Tensor x, Tensor[] packed, Tensor[] scale, Tensor?[] zero, Tensor?[] bias, int[] rotation_block, "
    "int[] rotation_seed, int[] out_features, int[] bits, int[] group_size, int activation_bits, int layout) "
    "-> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "linear_grad_input(Tensor grad, Tensor packed, Tensor scale, Tensor? zero, int rotation_block, int rotation_seed, "
    "int in_features, int bits, int group_size, int layout) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "repack(Tensor packed, Tensor scale, Tensor? zero, int out_features, int in_features, int bits, int group_size, "
    "int layout) -> (Tensor, Tensor, Tensor)"
)
for _name in ("dequantize", "dequantize_columns"):
    LIBRARY.define(
        f"{_name}(Tensor packed, Tensor scale, Tensor? zero, int out_features, int in_features, int bits, "
        "int group_size, int layout, int start, int stop) -> Tensor"
    )
LIBRARY.define(
    "gptq_columns(Tensor(a!) rows, Tensor(b!) errors, Tensor(c!) codes, Tensor factor, Tensor groups, Tensor step, "
    "Tensor scale, Tensor zero, int max_code) -> ()"
)
LIBRARY.define(
    "embedding(Tensor ids, Tensor packed, Tensor scale, Tensor? zero, int out_features, int in_features, int bits, "
    "int group_size, int layout) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
for _name in ("experts_linear", "experts_linear_reference"):
    LIBRARY.define(
        f"{_name}(Tensor x, Tensor offsets, Tensor packed, Tensor scale, Tensor? zero, int[] bits, int out_features, "
        "int group_size, int activation_bits, int layout) -> Tensor",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
LIBRARY.define(
    "experts_linear_grad_input(Tensor grad, Tensor offsets, Tensor packed, Tensor scale, Tensor? zero, int[] bits, "
    "int in_features, int group_size, int layout) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "experts_route(Tensor hidden, Tensor index, int num_experts, int num_choices) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define("experts_sum(Tensor rows, Tensor weights, Tensor order) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
