// The kernels of experts of 2 bits.
#include "cuda/kernels/experts.cuh"

QAIG_EXPERTS_KERNELS(2)
