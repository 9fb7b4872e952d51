// Every kernel that the library launches, by width and type.
#pragma once

#include "cuda/arguments.h"
#include "cuda/device/intrinsics.cuh"

#define QAIG_DECLARE_GEMV(width)                              \
    extern "C" {                                              \
    __global__ void qaig_gemv_##width##_f16_m8(QaigMatmul);   \
    __global__ void qaig_gemv_##width##_f16_m16(QaigMatmul);  \
    __global__ void qaig_gemv_##width##_bf16_m8(QaigMatmul);  \
    __global__ void qaig_gemv_##width##_bf16_m16(QaigMatmul); \
    }
#define QAIG_LIST_GEMV(width)                                        \
    {                                                                \
        {qaig_gemv_##width##_f16_m8, qaig_gemv_##width##_f16_m16},   \
        {qaig_gemv_##width##_bf16_m8, qaig_gemv_##width##_bf16_m16}, \
    }

QAIG_DECLARE_GEMV(w2)
QAIG_DECLARE_GEMV(w3)
QAIG_DECLARE_GEMV(w4)
QAIG_DECLARE_GEMV(w8)
QAIG_DECLARE_GEMV(mixed)
#define QAIG_DECLARE_GEMM(width)                              \
    extern "C" {                                              \
    __global__ void qaig_gemm_f16_##width##_f16(QaigMatmul);  \
    __global__ void qaig_gemm_f16_##width##_bf16(QaigMatmul); \
    __global__ void qaig_gemm_i8_##width##_f16(QaigMatmul);   \
    __global__ void qaig_gemm_i8_##width##_bf16(QaigMatmul);  \
    }
#define QAIG_LIST_GEMM(kernel, width) {qaig_##kernel##_##width##_f16, qaig_##kernel##_##width##_bf16}

QAIG_DECLARE_GEMM(w2)
QAIG_DECLARE_GEMM(w3)
QAIG_DECLARE_GEMM(w4)
QAIG_DECLARE_GEMM(w8)
extern "C" {
__global__ void qaig_dequantize_w2(QaigDequantize);
__global__ void qaig_dequantize_w3(QaigDequantize);
__global__ void qaig_dequantize_w4(QaigDequantize);
__global__ void qaig_dequantize_w8(QaigDequantize);
__global__ void qaig_quantize_activations_f16(QaigQuantizeActivations);
__global__ void qaig_quantize_activations_bf16(QaigQuantizeActivations);
__global__ void qaig_gptq_columns(QaigGptqColumns);
}

namespace qaig {
namespace cuda {
namespace {

using MatmulFunction = void (*)(QaigMatmul);
using DequantizeFunction = void (*)(QaigDequantize);

constexpr MatmulFunction kGemv[5][2][2] = {QAIG_LIST_GEMV(w2), QAIG_LIST_GEMV(w3), QAIG_LIST_GEMV(w4),
                                           QAIG_LIST_GEMV(w8), QAIG_LIST_GEMV(mixed)};
constexpr MatmulFunction kGemmF16[4][2] = {QAIG_LIST_GEMM(gemm_f16, w2), QAIG_LIST_GEMM(gemm_f16, w3),
                                           QAIG_LIST_GEMM(gemm_f16, w4), QAIG_LIST_GEMM(gemm_f16, w8)};
constexpr MatmulFunction kGemmI8[4][2] = {QAIG_LIST_GEMM(gemm_i8, w2), QAIG_LIST_GEMM(gemm_i8, w3),
                                          QAIG_LIST_GEMM(gemm_i8, w4), QAIG_LIST_GEMM(gemm_i8, w8)};
constexpr DequantizeFunction kDequantize[4] = {qaig_dequantize_w2, qaig_dequantize_w3, qaig_dequantize_w4,
                                               qaig_dequantize_w8};

constexpr int index_of(int bits) { return bits == 8 ? 3 : bits - 2; }

}  // namespace
}  // namespace cuda
}  // namespace qaig
