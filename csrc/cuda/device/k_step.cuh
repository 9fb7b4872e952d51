// A k-step of a gemm: a warp's accumulators, and its words and rows of x in shared memory.
#pragma once

#include "cuda/device/accumulators.cuh"

namespace qaig {
namespace cuda {

constexpr int kWarpTiles = 2;      // row tiles of a warp
constexpr int kChunkColumns = 32;  // columns that are multiplied together, or skipped if x has none of them
constexpr int kChunkFragments = kChunkColumns / 8;  // fragments of 8 columns: operand B of an mma
constexpr int kColumnFragments = kGemmColumns / 8;
// Sums of row tile r and columns from 8 j on are at r * kColumnFragments + j.
using GemmAccumulators = Accumulators<kWarpTiles * kColumnFragments>;

// Swizzle: index of chunk `chunk` of a row of x, in 16 bytes. A row has `chunks` chunks in a k-step. Every other row in
// the same banks has its halves swapped. So there is no bank conflict when eight lanes read half of two rows, or a
// quarter of four, or write whole rows.
template <int chunks>
QAIG_HOST_DEVICE int swizzled(int row, int chunk) {
    static_assert(chunks == 4 || chunks == 8, "rows of 64 or 128 bytes");
    return row * chunks + (chunk ^ row * chunks / 8 % 2 * (chunks / 2));
}

// One stage as a warp reads it.
template <int bits, int element_bytes>
struct KStep {
    static constexpr int kChunks = kTileSlots * element_bytes / 16;

    const uint4* words;  // of the warp's row block: [bits][32]
    const uint4* x;      // [kGemmColumns][kChunks], each at swizzled()
    int half;            // the warp has row tiles 2 half and 2 half + 1
    int lane, g, t;
    int columns;  // of the output tile that are rows of x
    bool last;    // this block's last k-step of the output tile

    // The lane's words of the warp's row tiles.
    QAIG_MEMBER void load_words(unsigned (&to)[kWarpTiles * bits]) const {
        if constexpr (bits % 2 == 0) {
#pragma unroll
            for (int c = 0; c < bits / 2; c++) {
                const uint4 v = load_shared(words + (half * (bits / 2) + c) * 32 + lane);
                to[4 * c] = v.x, to[4 * c + 1] = v.y, to[4 * c + 2] = v.z, to[4 * c + 3] = v.w;
            }
        } else {  // six of twelve words: the first or last four, and half of the middle four
            static_assert(bits == 3, "the only odd width");
            const uint4 v = load_shared(words + 2 * half * 32 + lane);
            const uint2 middle = load_shared(reinterpret_cast<const uint2*>(words + 32 + lane) + half);
            to[0] = half ? middle.x : v.x, to[1] = half ? middle.y : v.y;
            to[2] = half ? v.x : v.z, to[3] = half ? v.y : v.w;
            to[4] = half ? v.z : middle.x, to[5] = half ? v.w : middle.y;
        }
    }

    // Chunk `chunk` of column 8 fragment + g.
    QAIG_MEMBER uint4 load_x(int fragment, int chunk) const {
        return load_shared(x + swizzled<kChunks>(8 * fragment + g, chunk));
    }

    // Whether x has any of the columns that begin at `fragment`, a multiple of kChunkFragments.
    QAIG_MEMBER bool has_columns(int fragment) const { return 8 * fragment < columns; }
};

}  // namespace cuda
}  // namespace qaig
