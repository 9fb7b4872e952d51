"""How packed weights are stored and read: codes in words, layouts, rotation, the product in plain torch, the checks.

- `scheme`: `WeightScheme`, how one weight is stored, and `Plan`, a scheme for every one.
- `packing`: codes to int32 words and back, the names of the layouts, the shapes of a weight's tensors.
- `cuda_layout`: the checkpoint layout to that of the CUDA kernels and back.
- `hadamard`: the rotation of a layer's input.
- `experts`: a stack of experts' weights, and their product with routed rows in plain torch.
- `reference`: `Weight`, its values, and products with it in plain torch.
- `checks`: what every operator checks of its arguments.

Another kind of code than the integer grid would add its own modules here. Calibration packs through `QAIGLinear.like`
and `rounding.packed_layers`. Two places know the grid itself: `rounding.quant_grid`, and `execution.learned_scales`,
which learns the scales of packed layers. Rotation is shared by all. The room imports `utils`.
"""
