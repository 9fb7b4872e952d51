// The kernels of 8-bit weights.
#include "cuda/kernels/gemv.cuh"
#include "cuda/kernels/dequantize.cuh"
#include "cuda/kernels/gemm_f16.cuh"
#include "cuda/kernels/gemm_i8.cuh"

QAIG_DECODE_KERNELS(w8, 8)
QAIG_DEQUANTIZE_KERNEL(8)
QAIG_FUSED_KERNELS(8)
QAIG_INTEGER_KERNELS(8)
