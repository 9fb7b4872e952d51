// One projection of a stack of experts. Each piece of an expert's rows is multiplied by the gemv or the gemm of a linear
// layer. Blocks with the same blockIdx.y have the same rows of every weight. Pieces go to blocks in turn. Experts without
// rows are not read.
#pragma once

#include "cuda/device/expert_rows.cuh"
#include "cuda/kernels/gemm_f16.cuh"
#include "cuda/kernels/gemv_mainloop.cuh"

namespace qaig {
namespace cuda {

template <class T, int bits, int columns>
QAIG_DEVICE void experts_gemv(const QaigExperts& d) {
    QAIG_DYNAMIC_SHARED(shared);
    ExpertRows<bits, columns> pieces(d);
    for (unsigned piece = blockIdx.x; pieces.find(piece); piece += gridDim.x) {
        const QaigLayer l = pieces.layer();
        auto part = gemv_layer<T, bits, columns, false>(l, pieces.count, shared);
        const int begin = static_cast<int>(blockIdx.y) * part.tiles;
        part.run(begin, begin + part.tiles);
    }
    pieces.clear_others();
}

// Empty where it is never launched, see kGemmCapability.
template <class T, int bits>
QAIG_DEVICE void experts_gemm(const QaigExperts& d) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    QAIG_DYNAMIC_SHARED(shared);
    ExpertRows<bits, kGemmColumns> pieces(d);
    for (unsigned piece = blockIdx.x; pieces.find(piece); piece += gridDim.x) {
        const QaigLayer l = pieces.layer();
        auto part = gemm_layer<GemmF16<T, bits>, false>(l, pieces.count, shared);
        const int begin = static_cast<int>(blockIdx.y) * part.tiles;
        part.run(begin, begin + part.tiles);
    }
    pieces.clear_others();
#endif
}

}  // namespace cuda
}  // namespace qaig

#define QAIG_EXPERTS_GEMV_KERNEL(name, type, bits, columns)                                           \
    extern "C" __global__ void __launch_bounds__(128, qaig::cuda::gemv_blocks_per_processor(columns)) \
        name(QAIG_ARGUMENT QaigExperts d) {                                                           \
        qaig::cuda::experts_gemv<qaig::cuda::type, bits, columns>(d);                                 \
    }
#define QAIG_EXPERTS_GEMM_KERNEL(name, type, bits)                                           \
    extern "C" __global__ void __launch_bounds__(128, 2) name(QAIG_ARGUMENT QaigExperts d) { \
        qaig::cuda::experts_gemm<qaig::cuda::type, bits>(d);                                 \
    }

// The kernels of one width.
#define QAIG_EXPERTS_KERNELS(bits)                                                 \
    QAIG_EXPERTS_GEMV_KERNEL(qaig_experts_gemv_w##bits##_f16_m8, F16, bits, 8)     \
    QAIG_EXPERTS_GEMV_KERNEL(qaig_experts_gemv_w##bits##_f16_m16, F16, bits, 16)   \
    QAIG_EXPERTS_GEMV_KERNEL(qaig_experts_gemv_w##bits##_bf16_m8, BF16, bits, 8)   \
    QAIG_EXPERTS_GEMV_KERNEL(qaig_experts_gemv_w##bits##_bf16_m16, BF16, bits, 16) \
    QAIG_EXPERTS_GEMM_KERNEL(qaig_experts_gemm_w##bits##_f16, F16, bits)           \
    QAIG_EXPERTS_GEMM_KERNEL(qaig_experts_gemm_w##bits##_bf16, BF16, bits)
