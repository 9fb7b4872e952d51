// The kernels of 8-bit weights.
#include "cuda/kernels/gemv.cuh"
#include "cuda/kernels/dequantize.cuh"
#include "cuda/kernels/gemm_f16.cuh"
#include "cuda/kernels/gemm_i8.cuh"

QAIG_GEMV_KERNELS(w8, 8)
QAIG_DEQUANTIZE_KERNEL(8)
QAIG_GEMM_F16_KERNELS(8)
QAIG_GEMM_I8_KERNELS(8)
