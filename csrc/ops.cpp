// The CPU kernels of torch.ops.qaig, whose schemas Python defines (transformers_qaig/nn/ops.py).
// The only file that includes torch, and of torch only the stable ABI: one binary serves many versions.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(qaig, CPU, m) { static_cast<void>(m); }
