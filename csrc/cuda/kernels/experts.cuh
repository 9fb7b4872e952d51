// Multiplies one projection of a stack of experts. Each column tile, rows of x of one expert, takes the main loop of
// gemv or gemm_f16. Blocks with the same blockIdx.y have the same rows of every weight, and take column tiles in turn.
// Experts without rows are not read.
#pragma once

#include "cuda/device/expert_rows.cuh"
#include "cuda/kernels/gemm_f16.cuh"
#include "cuda/kernels/gemv_mainloop.cuh"

namespace qaig {
namespace cuda {

template <class T, int bits, int columns>
QAIG_DEVICE void experts_gemv(const QaigExperts& d) {
    QAIG_DYNAMIC_SHARED(shared);
    ExpertRows<bits, columns> column_tiles(d);
    for (unsigned tile = blockIdx.x; column_tiles.find(tile); tile += gridDim.x) {
        const QaigLayer l = column_tiles.layer();
        auto layer = gemv_layer<T, bits, columns, false>(l, column_tiles.count, shared);
        const int begin = static_cast<int>(blockIdx.y) * layer.tiles;
        layer.run(begin, begin + layer.tiles);
    }
    column_tiles.clear_unrouted_rows();
}

// Empty for GPUs that never launch it, see kGemmCapability.
template <class T, int bits>
QAIG_DEVICE void experts_gemm(const QaigExperts& d) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    QAIG_DYNAMIC_SHARED(shared);
    ExpertRows<bits, kGemmColumns> column_tiles(d);
    for (unsigned tile = blockIdx.x; column_tiles.find(tile); tile += gridDim.x) {
        const QaigLayer l = column_tiles.layer();
        auto layer = gemm_layer<GemmF16<T, bits>, false>(l, column_tiles.count, shared);
        const int begin = static_cast<int>(blockIdx.y) * layer.tiles;
        layer.run(begin, begin + layer.tiles);
    }
    column_tiles.clear_unrouted_rows();
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
