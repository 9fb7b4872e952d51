// The kernels of experts of 8 bits.
#include "cuda/kernels/experts.cuh"

QAIG_EXPERTS_KERNELS(8)
