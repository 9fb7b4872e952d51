// gemm for 8-bit activations: y = token_scale * (x W') + bias. Both factors are bytes, and tensor cores sum their
// products in integers within a group, in the main loop of gemm_mainloop.cuh.
//
// Sums of 32 bits begin at kMagic. For sums below 2^22, their bits are then those of the float32 number kMagicFloat +
// sum, without a conversion. Where a group ends, or after kSegmentSteps, they become floats and are multiplied by the
// scale. Nothing is rounded before that.
//
// Bytes of 8-bit codes are code - 128. So each sum lacks (128 - zero) times the sum of x, which is computed from the
// bytes that were multiplied. Both together are less than 2^24, so float32 holds this exactly, too.
#pragma once

#include "cuda/device/unpack_bytes.cuh"
#include "cuda/kernels/gemm_mainloop.cuh"

namespace qaig {
namespace cuda {

constexpr unsigned kMagic = 0x4b400000u;
constexpr float kMagicFloat = 12582912;  // 1.5 * 2^23

// The most k-steps of 64 slots whose products add up to less than 2^22. |x| is at most 127, |code - zero| below 2^bits.
// With 8 bits, |code - 128| is at most 128.
QAIG_HOST_DEVICE int segment_steps(int bits) { return bits == 8 ? 4 : 512 >> bits; }

// The sums of one lane: `at` as in GemmAccumulators, and integers that are not added to them yet.
struct GemmI8Accumulators : GemmAccumulators {
    unsigned products[kWarpTiles * kColumnFragments][4];  // kMagic + sums
    int x_sums[kColumnFragments];                         // of column 8 fragment + g, over the lane's slots
    int steps;                                            // that they contain

    QAIG_MEMBER GemmI8Accumulators() : GemmAccumulators{} {
        clear(0, kColumnFragments);
        steps = 0;
    }

    QAIG_MEMBER void clear(int fragment, int fragments) {
#pragma unroll
        for (int i = 0; i < fragments; i++) {
#pragma unroll
            for (int j = 0; j < kWarpTiles * 4; j++) {
                products[j / 4 * kColumnFragments + fragment + i][j % 4] = kMagic;
            }
            x_sums[fragment + i] = 0;
        }
    }
};

// Multiplies row `row` of the weight with row m of x, which is not quantized, in float32 as torch does.
template <class T, int bits>
QAIG_DEVICE float row_product(const QaigLayer& l, int row, int m) {
    const Shape s = shape_of(l);
    const int in_block = row % kBlockRows, r = in_block / 16, h = in_block / 8 % 2, g = in_block % 8;
    const auto* x = reinterpret_cast<const unsigned short*>(static_cast<const char*>(l.x) + m * l.x_stride);
    const long long row_block = row / kBlockRows;
    float sum = 0;
#pragma unroll 1
    for (int at = 0; at < 4 * s.tiles(); at++) {  // lane t of each tile's four
        const int tile = at / 4, lane = 4 * g + at % 4;
        unsigned words[bits];
#pragma unroll
        for (int i = 0; i < bits; i++) {
            const int f = r * bits + i;
            const auto* item = static_cast<const unsigned*>(l.words) + (row_block * s.tiles() + tile) * bits * 128;
            words[i] = load_global(item + f / 4 * 128 + 4 * lane + f % 4);
        }
#pragma unroll
        for (int p = 0; p < kTilePairs; p++) {
            const int unit = p / 8, group = (2 * tile + unit) / s.units_per_group();
            const int first = 8 * (at % 4) + 4 * (p / 4 % 2) + 2 * (p / 2 % 2);
            const int in_group = (2 * tile + unit - group * s.units_per_group()) * kUnitSlots + first;
            if (p % 2 != h || group >= s.groups()) {
                continue;
            }
            const long long of_group = (row_block * s.groups() + group) * kBlockRows + 8 * g + 2 * r + h;
            const float scale = load_float(l.scale, l.scale_type, of_group);
            const int zero = l.zero ? static_cast<int>(load_global(l.zero + of_group)) : 1 << (bits - 1);
#pragma unroll
            for (int second = 0; second < 2; second++) {
                if (in_group + second < l.group_size) {
                    const float weight =
                        static_cast<float>(static_cast<int>(unpack_code<bits>(words, p, second)) - zero);
                    const int slot = tile * kTileSlots + unit * kUnitSlots + first + second;
                    sum += multiply(weight, scale) * low_float(T(), load_global(x + slot));
                }
            }
        }
    }
    return sum;
}

template <class T, int bits>
struct GemmI8 {
    using Type = T;
    using Accumulators = GemmI8Accumulators;
    using I8Step = KStep<bits, 1>;
    static constexpr int kBits = bits, kStages = kGemmI8Stages, kElementBytes = 1, kSegmentSteps = segment_steps(bits);

    // Scales and adds the integers of one group, for the columns that begin at `fragment`.
    QAIG_DEVICE void add_scaled(Accumulators& sums, int fragment, const StepScales& groups, int unit, int scale_type,
                                bool has_zeros) {
        const RowScales scales = row_scales(groups.scale[unit], scale_type);
        float missing[4];  // factor of the sum of x that each row's product lacks
#pragma unroll
        for (int i = 0; i < 4; i++) {
            missing[i] = static_cast<float>(128 - static_cast<int>(groups.zero[unit] >> 8 * i & 255u));
        }
#pragma unroll
        for (int i = 0; i < kChunkFragments; i++) {
            float x_sums[2] = {0, 0};
            if (bits == 8 && has_zeros) {  // of columns 2 t and 2 t + 1: four other lanes have a quarter each
                unsigned sum = static_cast<unsigned>(sums.x_sums[fragment + i]);
                sum += shuffle_xor(sum, 1);
                sum += shuffle_xor(sum, 2);
                const int t = threadIdx.x % 4;
                x_sums[0] = static_cast<float>(static_cast<int>(shuffle(sum, 8 * t)));
                x_sums[1] = static_cast<float>(static_cast<int>(shuffle(sum, 8 * t + 4)));
            }
#pragma unroll
            for (int r = 0; r < kWarpTiles; r++) {
                const int at = r * kColumnFragments + fragment + i;
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int row = 2 * r + e / 2;
                    float product = float_of(sums.products[at][e]) - kMagicFloat;
                    if (bits == 8 && has_zeros) {
                        product += missing[row] * x_sums[e % 2];
                    }
                    sums.at[at][e] += scales.at[row] * product;
                }
            }
        }
        sums.clear(fragment, kChunkFragments);
    }

    QAIG_DEVICE void multiply(Accumulators& sums, const I8Step& step, const StepScales& groups, const QaigLayer& l) {
        const bool has_zeros = l.zero != nullptr;
        unsigned words[kWarpTiles * bits];
        step.load_words(words);
        unsigned a[2][kWarpTiles][4];
#pragma unroll
        for (int i = 0; i < 2 * kWarpTiles; i++) {
            const int unit = i / kWarpTiles, r = i % kWarpTiles;
            const unsigned zeros[2] = {repeat_byte(groups.zero[unit], 2 * r),
                                       repeat_byte(groups.zero[unit], 2 * r + 1)};
            unpack_bytes<bits>(a[unit][r], words + r * bits, unit, zeros);
        }
        sums.steps++;
        const bool ends = groups.ends || step.last || sums.steps == kSegmentSteps;
#pragma unroll
        for (int fragment = 0; fragment < kColumnFragments; fragment += kChunkFragments) {
            if (!step.has_columns(fragment)) {
                break;
            }
            uint4 x[kChunkFragments];
#pragma unroll
            for (int i = 0; i < kChunkFragments; i++) {
                x[i] = step.load_x(fragment + i, step.t);
            }
#pragma unroll
            for (int unit = 0; unit < 2; unit++) {
                if (unit == 1 && !groups.one_group) {
                    add_scaled(sums, fragment, groups, 0, l.scale_type, has_zeros);
                }
#pragma unroll
                for (int i = 0; i < kChunkFragments; i++) {
                    const unsigned low = word_of(x[i], 2 * unit), high = word_of(x[i], 2 * unit + 1);
#pragma unroll
                    for (int r = 0; r < kWarpTiles; r++) {
                        multiply_byte_tiles(sums.products[r * kColumnFragments + fragment + i], a[unit][r], low, high);
                    }
                    if (bits == 8 && has_zeros) {
                        int& sum = sums.x_sums[fragment + i];
                        sum = add_dot(low, four_times(1), add_dot(high, four_times(1), sum));
                    }
                }
            }
            if (ends) {
                add_scaled(sums, fragment, groups, 1, l.scale_type, has_zeros);
            }
        }
        sums.steps = ends ? 0 : sums.steps;
    }

    // Computes rows of x that are not quantized again, after a tile of y is stored. Such rows are rare.
    QAIG_DEVICE void finish(const QaigLayer& l, int rows, int row, int column) {
        warp_barrier();
        const int n = row + static_cast<int>(threadIdx.x) % 32;
        const int end = column + kGemmColumns < rows ? column + kGemmColumns : rows;
#pragma unroll 1
        for (int m = column; m < end; m++) {
            if (load_float(l.token_scale, QAIG_F32, m) == kNotQuantized && n < l.out_features) {
                float bias[1];
                load_bias(l, n, bias);
                const auto y = static_cast<unsigned short>(rounded(T(), row_product<T, bits>(l, n, m) + bias[0]));
                store_global(static_cast<unsigned short*>(l.y) + static_cast<long long>(m) * l.out_features + n, y);
            }
        }
    }
};

}  // namespace cuda
}  // namespace qaig

#define QAIG_GEMM_I8_KERNEL(name, type, bits)                                               \
    extern "C" __global__ void __launch_bounds__(128, 2) name(QAIG_ARGUMENT QaigMatmul d) { \
        qaig::cuda::gemm<qaig::cuda::GemmI8<qaig::cuda::type, bits>>(d);                    \
    }

// The gemm_i8 kernels of one width.
#define QAIG_GEMM_I8_KERNELS(bits)                             \
    QAIG_GEMM_I8_KERNEL(qaig_gemm_i8_w##bits##_f16, F16, bits) \
    QAIG_GEMM_I8_KERNEL(qaig_gemm_i8_w##bits##_bf16, BF16, bits)
