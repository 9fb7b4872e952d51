// Sums of tensor core products: added up where several blocks have parts of them, finished and stored.
#pragma once

#include "elements.h"
#include "schedule.h"

namespace qaig {
namespace cuda {

// Of one lane: tiles of 16 rows of the weight by 8 rows of x ("columns") as mma leaves them, rows g (0, 1) and g + 8
// (2, 3) by columns 2 t (0, 2) and 2 t + 1 (1, 3).
template <int count>
struct Sums {
    float at[count][4];
};

// Leaves the sums of a warp to the same warps of the other blocks that have parts of the whole: blocks `first` to
// `last`, of which this is one. Returns whether this warp is the last to do so: then `sums` are the whole.
//
// `partials` has two places for each block, `place` float4 apart: a block may have the end of one whole and the
// beginning of another. `counter` is zero before and after.
template <int count>
QAIG_DEVICE bool add_blocks(Sums<count>& sums, float4* partials, int place, int first, int last, unsigned* counter) {
    const int lane = threadIdx.x % 32, self = blockIdx.x;
    // Only the first of the blocks begins where the whole does.
    const auto partial = [&](int block) {
        return partials + static_cast<long long>(2 * block + (block == first ? 1 : 0)) * place + lane;
    };
    float4* own = partial(self);
#pragma unroll
    for (int i = 0; i < count; i++) {
        const float (&s)[4] = sums.at[i];
        store_global(own + i * 32, float4{s[0], s[1], s[2], s[3]});
    }
    // The barrier first: one lane's fence then covers what all lanes stored, as its increment tells others. The same
    // backwards for who reads: the barrier hands on what the fence after the increment made visible.
    warp_barrier();
    unsigned before = 0;
    if (lane == 0) {
        memory_fence();
        before = atomic_increment(counter);
    }
    if (shuffle(before, 0) != static_cast<unsigned>(last - first)) {
        return false;
    }
    if (lane == 0) {
        memory_fence();
        store_global(counter, 0u);
    }
    warp_barrier();
    sums = {};
    for (int block = first; block <= last; block++) {
        const float4* theirs = partial(block);
#pragma unroll
        for (int i = 0; i < count; i++) {
            float (&s)[4] = sums.at[i];
            const float4 v = load_from_others(theirs + i * 32);
            s[0] += v.x, s[1] += v.y, s[2] += v.z, s[3] += v.w;
        }
    }
    return true;
}

// What finishes the sums of row n of the weight and row m of x: y = token_scale * sum + bias. Neutral where there is
// none.
QAIG_DEVICE float bias_of(const QaigLayer& l, int n) {
    return l.bias && n < l.out_features ? load_float(l.bias, l.bias_type, n) : 0.0f;
}
QAIG_DEVICE float token_scale_of(const QaigLayer& l, int rows, int m) {
    return l.token_scale && m < rows ? load_float(l.token_scale, QAIG_F32, m) : 1.0f;
}

// Finishes, rounds and stores the sums of a tile whose first one belongs to row `row` of the weight and row `column` of
// x, where they are there.
template <class T>
QAIG_DEVICE void store_tile(const QaigLayer& l, int rows, const float (&sums)[4], int row, int column,
                            const float (&bias)[2], const float (&token_scale)[2]) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int n = row + e / 2 * 8, m = column + e % 2;
        const auto y = static_cast<unsigned short>(rounded(T(), multiply(sums[e], token_scale[e % 2]) + bias[e / 2]));
        if (n < l.out_features && m < rows) {
            store_global(static_cast<unsigned short*>(l.y) + static_cast<long long>(m) * l.out_features + n, y);
        }
    }
}

// Stores the sums of `row_tiles` tiles below each other and `parts` beside each other, at r * parts + j.
template <class T, int row_tiles, int parts>
QAIG_DEVICE void store_sums(const QaigLayer& l, int rows, const Sums<row_tiles * parts>& sums, int row, int column) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    float bias[row_tiles][2];
#pragma unroll
    for (int r = 0; r < row_tiles; r++) {
        const int n = row + 16 * r + g;
        bias[r][0] = bias_of(l, n), bias[r][1] = bias_of(l, n + 8);
    }
#pragma unroll
    for (int part = 0; part < parts; part++) {
        const int m = column + 8 * part + 2 * t;
        const float token_scale[2] = {token_scale_of(l, rows, m), token_scale_of(l, rows, m + 1)};
#pragma unroll
        for (int r = 0; r < row_tiles; r++) {
            store_tile<T>(l, rows, sums.at[r * parts + part], row + 16 * r + g, m, bias[r], token_scale);
        }
    }
}

}  // namespace cuda
}  // namespace qaig
