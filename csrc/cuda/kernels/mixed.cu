// The kernels of launches whose layers have several widths.
#include "cuda/kernels/gemv.cuh"

QAIG_GEMV_KERNELS(mixed, qaig::cuda::kMixedBits)
