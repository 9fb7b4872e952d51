// A step of the kernels for many rows of x (gemm_mainloop.cuh): a warp's tiles of sums, and its words and rows of x in shared
// memory.
#pragma once

#include "cuda/device/accumulators.cuh"

namespace qaig {
namespace cuda {

constexpr int kWarpTiles = 2;      // row tiles of a warp
constexpr int kChunkColumns = 32;  // columns that are multiplied together, or not at all if x has none of them
constexpr int kChunkParts = kChunkColumns / 8;
constexpr int kColumnParts = kTiledColumns / 8;
using TiledSums = Sums<kWarpTiles * kColumnParts>;  // of row tile r and columns from 8 j on at r * kColumnParts + j

// Place, in 16 bytes, of chunk `chunk` of a row of x that has `chunks` of 16 bytes a step. Rows that lie in the same
// banks have their halves swapped, so that eight lanes that read a half of two rows each, or a quarter of four, meet in
// no bank; and so do those that write whole rows.
template <int chunks>
QAIG_BOTH int x_place(int row, int chunk) {
    static_assert(chunks == 4 || chunks == 8, "rows of 64 or 128 bytes");
    return row * chunks + (chunk ^ row * chunks / 8 % 2 * (chunks / 2));
}

// One stage as a warp reads it.
template <int bits, int element_bytes>
struct Step {
    static constexpr int kChunks = kTileSlots * element_bytes / 16;

    const uint4* words;  // of the warp's row block: [bits][32]
    const uint4* x;      // [kTiledColumns][kChunks], each at x_place
    int half;            // the warp has row tiles 2 half and 2 half + 1
    int lane, g, t;
    int columns;  // of the output tile that x has
    bool last;    // of the steps that this block has of the output tile

    // The lane's words of the warp's row tiles.
    QAIG_MEMBER void load_words(unsigned (&to)[kWarpTiles * bits]) const {
        if constexpr (bits % 2 == 0) {
#pragma unroll
            for (int c = 0; c < bits / 2; c++) {
                const uint4 v = load_shared(words + (half * (bits / 2) + c) * 32 + lane);
                to[4 * c] = v.x, to[4 * c + 1] = v.y, to[4 * c + 2] = v.z, to[4 * c + 3] = v.w;
            }
        } else {  // six of twelve words: four, and a half of the four in the middle
            static_assert(bits == 3, "the only odd width");
            const uint4 v = load_shared(words + 2 * half * 32 + lane);
            const uint2 middle = load_shared(reinterpret_cast<const uint2*>(words + 32 + lane) + half);
            to[0] = half ? middle.x : v.x, to[1] = half ? middle.y : v.y;
            to[2] = half ? v.x : v.z, to[3] = half ? v.y : v.w;
            to[4] = half ? v.z : middle.x, to[5] = half ? v.w : middle.y;
        }
    }

    // Chunk `chunk` of column 8 part + g.
    QAIG_MEMBER uint4 load_x(int part, int chunk) const {
        return load_shared(x + x_place<kChunks>(8 * part + g, chunk));
    }

    // Whether x has any of the columns that begin at part `part`, a multiple of kChunkParts.
    QAIG_MEMBER bool has_columns(int part) const { return 8 * part < columns; }
};

}  // namespace cuda
}  // namespace qaig
