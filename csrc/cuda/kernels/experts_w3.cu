// The kernels of experts of 3 bits.
#include "cuda/kernels/experts.cuh"

QAIG_EXPERTS_KERNELS(3)
