// The kernels of 2-bit weights.
#include "cuda/kernels/gemv.cuh"
#include "cuda/kernels/dequantize.cuh"
#include "cuda/kernels/gemm_f16.cuh"
#include "cuda/kernels/gemm_i8.cuh"

QAIG_GEMV_KERNELS(w2, 2)
QAIG_DEQUANTIZE_KERNEL(2)
QAIG_GEMM_F16_KERNELS(2)
QAIG_GEMM_I8_KERNELS(2)
