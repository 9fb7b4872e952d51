// The kernels of experts of 4 bits.
#include "cuda/kernels/experts.cuh"

QAIG_EXPERTS_KERNELS(4)
