// The kernels of 3-bit weights.
#include "cuda/kernels/gemv.cuh"
#include "cuda/kernels/dequantize.cuh"
#include "cuda/kernels/gemm_f16.cuh"
#include "cuda/kernels/gemm_i8.cuh"

QAIG_DECODE_KERNELS(w3, 3)
QAIG_DEQUANTIZE_KERNEL(3)
QAIG_FUSED_KERNELS(3)
QAIG_INTEGER_KERNELS(3)
