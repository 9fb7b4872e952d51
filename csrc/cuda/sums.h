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
    const auto partial = [&](int block) { return partials + (2LL * block + (block == first ? 1 : 0)) * place + lane; };
    float4* own = partial(self);
#pragma unroll
    for (int i = 0; i < count; i++) {
        const float (&s)[4] = sums.at[i];
        store_global(own + i * 32, float4{s[0], s[1], s[2], s[3]});
    }
    memory_fence();
    warp_barrier();
    unsigned before = 0;
    if (lane == 0) {
        before = atomic_increment(counter);
    }
    if (shuffle(before, 0) != static_cast<unsigned>(last - first)) {
        return false;
    }
    memory_fence();
    if (lane == 0) {
        store_global(counter, 0u);
    }
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

// Sums whose first ones belong to row `row` of the weight and row `column` of x, finished and rounded, where they are
// there.
template <class T>
QAIG_DEVICE void store_sums(const QaigLayer& l, int rows, const float (&sums)[4], int row, int column) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int n = row + e / 2 * 8, m = column + e % 2;
        if (n < l.out_features && m < rows) {
            float y = sums[e];
            if (l.token_scale) {
                y = multiply(y, float_of(load_global(reinterpret_cast<const unsigned*>(l.token_scale) + m)));
            }
            if (l.bias) {
                y += load_float(l.bias, l.bias_type, n);
            }
            auto* out = static_cast<unsigned short*>(l.y) + static_cast<long long>(m) * l.out_features + n;
            store_global(out, static_cast<unsigned short>(rounded(T(), y)));
        }
    }
}

}  // namespace cuda
}  // namespace qaig
