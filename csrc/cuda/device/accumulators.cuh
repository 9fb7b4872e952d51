// Accumulators of tensor core products: the split-K reduction over blocks, and the epilogue that stores y.
#pragma once

#include "cuda/device/elements.cuh"
#include "cuda/device/schedule.cuh"

namespace qaig {
namespace cuda {

// The sums of one lane. A tile has 16 rows of the weight by 8 rows of x ("columns"), as mma leaves them.
// Sums 0 and 1 are of row g, 2 and 3 of row g + 8. Sums 0 and 2 are of column 2 t, 1 and 3 of column 2 t + 1.
template <int count>
struct Accumulators {
    float at[count][4];
};

// Split-K reduction of one warp's sums, over the same warps of blocks `first` to `last`, of which this is one. Each
// warp writes its sums to the workspace. Returns whether this warp is the last. If so, `sums` are complete.
//
// The workspace has two slots for each block, `slot_size` float4 apart. One is for the end of a row block (or output
// tile), the other for the beginning of the next one. `semaphore` is zero before and after.
template <int count>
QAIG_DEVICE bool split_k_reduce(Accumulators<count>& sums, float4* workspace, int slot_size, int first, int last,
                                unsigned* semaphore) {
    const int lane = threadIdx.x % 32, self = blockIdx.x;
    // Only the first block has the beginning.
    const auto slot_of = [&](int block) {
        return workspace + static_cast<long long>(2 * block + (block == first ? 1 : 0)) * slot_size + lane;
    };
    float4* own = slot_of(self);
#pragma unroll
    for (int i = 0; i < count; i++) {
        const float (&s)[4] = sums.at[i];
        store_global(own + i * 32, float4{s[0], s[1], s[2], s[3]});
    }
    // The barrier comes first: one lane's fence then covers the stores of all lanes, before its increment releases
    // them. The reader does the reverse: its fence follows the increment, and the barrier passes the order on to all
    // lanes.
    warp_barrier();
    unsigned before = 0;
    if (lane == 0) {
        memory_fence();
        before = atomic_increment(semaphore);
    }
    if (shuffle(before, 0) != static_cast<unsigned>(last - first)) {
        return false;
    }
    if (lane == 0) {
        memory_fence();
        store_global(semaphore, 0u);
    }
    warp_barrier();
    sums = {};
    constexpr int kAtOnce = count < 16 ? 16 / count : 1;  // blocks that are loaded before any of them is added
    for (int block = first; block <= last; block += kAtOnce) {
        float4 theirs[kAtOnce][count];
#pragma unroll
        for (int i = 0; i < kAtOnce * count; i++) {
            const int b = i / count;
            theirs[b][i % count] =
                block + b <= last ? load_from_others(slot_of(block + b) + i % count * 32) : float4{0, 0, 0, 0};
        }
#pragma unroll
        for (int i = 0; i < kAtOnce * count; i++) {
            float (&s)[4] = sums.at[i % count];
            const float4& v = theirs[i / count][i % count];
            s[0] += v.x, s[1] += v.y, s[2] += v.z, s[3] += v.w;
        }
    }
    return true;
}

// The epilogue is y = token_scale * sum + bias, for row n of the weight and row m of x. load_bias loads the biases of
// rows n + 8 i, or 0 without a bias. All loads are issued before the first value is used.
template <int count>
QAIG_DEVICE void load_bias(const QaigLayer& l, int n, float (&bias)[count]) {
    unsigned raw[count];
    const bool wide = l.bias_type == QAIG_F32;
#pragma unroll
    for (int i = 0; i < count; i++) {
        const bool there = l.bias && n + 8 * i < l.out_features;
        const int at = n + 8 * i;
        raw[i] = !there ? 0u
                 : wide ? load_global(static_cast<const unsigned*>(l.bias) + at)
                        : load_global(static_cast<const unsigned short*>(l.bias) + at);
    }
#pragma unroll
    for (int i = 0; i < count; i++) {
        bias[i] = wide ? float_of(raw[i]) : low_float(l.bias_type, raw[i]);
    }
}
QAIG_DEVICE float token_scale_of(const QaigLayer& l, int rows, int m) {
    return l.token_scale && m < rows ? load_float(l.token_scale, QAIG_F32, m) : 1.0f;
}

// Applies the epilogue to the sums of a tile, and stores those whose rows and columns exist. The first sum belongs to
// row `row` of the weight and row `column` of x.
template <class T>
QAIG_DEVICE void store_tile(const QaigLayer& l, int rows, const float (&sums)[4], int row, int column,
                            const float* bias, const float (&token_scale)[2]) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int n = row + e / 2 * 8, m = column + e % 2;
        const auto y = static_cast<unsigned short>(rounded(T(), multiply(sums[e], token_scale[e % 2]) + bias[e / 2]));
        if (n < l.out_features && m < rows) {
            store_global(static_cast<unsigned short*>(l.y) + static_cast<long long>(m) * l.out_features + n, y);
        }
    }
}

// Stores the sums of `row_tiles` by `fragments` tiles. Those of row tile r and fragment j are at r * fragments + j.
template <class T, int row_tiles, int fragments>
QAIG_DEVICE void store_accumulators(const QaigLayer& l, int rows, const Accumulators<row_tiles * fragments>& sums,
                                    int row, int column) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    float bias[2 * row_tiles];
    load_bias(l, row + g, bias);
#pragma unroll
    for (int fragment = 0; fragment < fragments; fragment++) {
        const int m = column + 8 * fragment + 2 * t;
        const float token_scale[2] = {token_scale_of(l, rows, m), token_scale_of(l, rows, m + 1)};
#pragma unroll
        for (int r = 0; r < row_tiles; r++) {
            store_tile<T>(l, rows, sums.at[r * fragments + fragment], row + 16 * r + g, m, bias + 2 * r, token_scale);
        }
    }
}

}  // namespace cuda
}  // namespace qaig
