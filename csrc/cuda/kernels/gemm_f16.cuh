// gemm for 16-bit activations, for dozens to hundreds of rows of x. Codes are unpacked in registers to 16-bit floats,
// and multiplied on tensor cores in the main loop of gemm_mainloop.cuh.
//
// As in the gemv, the weight is operand A, and codes minus zero points are exact. Scales multiply sums in float32,
// group by group. So results are at least as exact as a product with the dequantized weight. Lane t of four needs slots
// 8 t to 8 t + 7 of each unit of x (layout.h). These 16 bytes are operand B of two products. So plain 16-byte loads
// read x, without bank conflicts, and as few as with ldmatrix.
#pragma once

#include "cuda/kernels/gemm_mainloop.cuh"

namespace qaig {
namespace cuda {

template <class T, int bits>
struct GemmF16 {
    using Type = T;
    using Accumulators = GemmAccumulators;
    using F16Step = KStep<bits, 2>;
    static constexpr int kBits = bits, kStages = gemm_f16_stages(bits), kElementBytes = 2;

    // Scales and adds the products of the columns that begin at `fragment`, within one group.
    QAIG_DEVICE void add_scaled(GemmAccumulators& sums, int fragment,
                                const float (&products)[kWarpTiles][kChunkFragments][4], const RowScales& scales) {
#pragma unroll
        for (int r = 0; r < kWarpTiles; r++) {
            const float first = scales.at[2 * r], second = scales.at[2 * r + 1];
#pragma unroll
            for (int i = 0; i < kChunkFragments; i++) {
                float (&s)[4] = sums.at[r * kColumnFragments + fragment + i];
                s[0] += first * products[r][i][0];
                s[1] += first * products[r][i][1];
                s[2] += second * products[r][i][2];
                s[3] += second * products[r][i][3];
            }
        }
    }

    QAIG_DEVICE void multiply(GemmAccumulators& sums, const F16Step& step, const StepScales& groups,
                              const QaigLayer& l) {
        if (groups.one_group) {
            multiply_step<true>(sums, step, groups, l);
        } else {
            multiply_step<false>(sums, step, groups, l);
        }
    }

    // `same`: both units are of one group.
    template <bool same>
    QAIG_DEVICE void multiply_step(GemmAccumulators& sums, const F16Step& step, const StepScales& groups,
                                   const QaigLayer& l) {
        const RowScales scales = row_scales(groups.scale[1], l.scale_type);
        unsigned words[kWarpTiles * bits];
        step.load_words(words);
        unsigned a[kWarpTiles][4][4];
#pragma unroll
        for (int r = 0; r < kWarpTiles; r++) {
            ZeroPoint<T, bits> zero[2];
#pragma unroll
            for (int unit = 0; unit < 2; unit++) {
                if (unit == 0 || !same) {
                    zero[0] = zero_point_of<T, bits>(groups.zero[unit], 2 * r);
                    zero[1] = zero_point_of<T, bits>(groups.zero[unit], 2 * r + 1);
                }
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    a[r][2 * unit + j / 4][j % 4] = unpack_pair<T, bits>(words + r * bits, 8 * unit + j, zero[j % 2]);
                }
            }
        }
#pragma unroll
        for (int fragment = 0; fragment < kColumnFragments; fragment += kChunkFragments) {
            if (!step.has_columns(fragment)) {
                break;
            }
            float products[kWarpTiles][kChunkFragments][4] = {};
#pragma unroll
            for (int unit = 0; unit < 2; unit++) {
                if (unit == 1 && !same) {
                    add_scaled(sums, fragment, products, row_scales(groups.scale[0], l.scale_type));
#pragma unroll
                    for (int i = 0; i < kWarpTiles * kChunkFragments * 4; i++) {
                        products[i / (4 * kChunkFragments)][i / 4 % kChunkFragments][i % 4] = 0;
                    }
                }
                uint4 x[kChunkFragments];
#pragma unroll
                for (int i = 0; i < kChunkFragments; i++) {
                    x[i] = step.load_x(fragment + i, 4 * unit + step.t);
                }
#pragma unroll
                for (int s = 0; s < 2; s++) {
#pragma unroll
                    for (int i = 0; i < kWarpTiles * kChunkFragments; i++) {
                        const int r = i / kChunkFragments, p = i % kChunkFragments;
                        multiply_tiles(T(), products[r][p], a[r][2 * unit + s], word_of(x[p], 2 * s),
                                       word_of(x[p], 2 * s + 1));
                    }
                }
            }
            add_scaled(sums, fragment, products, scales);
        }
    }

    QAIG_DEVICE void finish(const QaigLayer&, int, int, int) {}
};

}  // namespace cuda
}  // namespace qaig

#define QAIG_GEMM_F16_KERNEL(name, type, bits)                                              \
    extern "C" __global__ void __launch_bounds__(128, 2) name(QAIG_ARGUMENT QaigMatmul d) { \
        qaig::cuda::gemm<qaig::cuda::GemmF16<qaig::cuda::type, bits>>(d);                   \
    }

// The gemm_f16 kernels of one width.
#define QAIG_GEMM_F16_KERNELS(bits)                              \
    QAIG_GEMM_F16_KERNEL(qaig_gemm_f16_w##bits##_f16, F16, bits) \
    QAIG_GEMM_F16_KERNEL(qaig_gemm_f16_w##bits##_bf16, BF16, bits)
