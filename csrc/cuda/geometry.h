// The geometry of a launch: blocks, threads, shared memory and workspace, from the sizes of the layers.
//
// Host and device compute with these alike, and so does Python (transformers_qaig/kernels/cuda/interface.py).
#pragma once

#include "cuda/arguments.h"

namespace qaig {
namespace cuda {

QAIG_BOTH Shape shape_of(const QaigLayer& l) { return {l.out_features, l.in_features, l.group_size, l.bits}; }

constexpr int kDecodeWarps = 4;
constexpr int kDecodeThreads = 32 * kDecodeWarps;
constexpr int kDequantizeThreads = 128;
constexpr int kArrangeThreads = 256;
constexpr int kColumnsThreads = 128;
constexpr int kMostColumns = 32;
constexpr float kIntegers = 128;
constexpr float kNotRounded = 0;  // no row's token_scale: it is at least 1e-5 / 127
constexpr int kMixed = 0;         // stands for the bits of the mixed kernel

// Items each warp has in shared memory, being computed or on their way.
QAIG_BOTH int decode_stages(int bits) { return bits == 2 ? 6 : bits == 3 ? 4 : bits == 4 ? 3 : 2; }
// An item's words, and of two groups (one for each unit) scales and zero points of a row block.
QAIG_BOTH int decode_stage_bytes(int bits) { return bits * 512 + 2 * kBlockRows * 3; }
QAIG_BOTH int decode_warp_bytes(int bits) {
    return bits == kMixed ? decode_warp_bytes(8) : decode_stages(bits) * decode_stage_bytes(bits);  // 8's are the most
}
QAIG_BOTH int decode_columns(int rows) { return rows <= 8 ? 8 : 16; }  // the 8 or 16 of _m8 and _m16
// Blocks that a multiprocessor holds at once: as many as there are registers for.
QAIG_BOTH int decode_blocks_per_processor(int columns) { return columns == 8 ? 3 : 2; }
// The layers' Shape::items() times their bits, or their tiled_steps(), must add up to less than this.
constexpr long long kMostSteps = 1LL << 31;
QAIG_BOTH int decode_sum_bytes(int columns) { return kBlockRows * columns * 4; }
QAIG_BOTH int decode_shared_bytes(int bits, int columns) {
    return kDecodeWarps * decode_warp_bytes(bits) + decode_sum_bytes(columns);
}

// Blocks of a launch whose layers have `items` in all (Shape::items()), on a device of `processors` multiprocessors.
QAIG_BOTH int decode_grid(long long items, int processors, int columns) {
    const long long most = static_cast<long long>(processors) * decode_blocks_per_processor(columns);
    const long long useful = (items + kDecodeWarps - 1) / kDecodeWarps;
    return static_cast<int>(useful < most ? useful : most);
}
QAIG_BOTH long long decode_partial_bytes(int grid, int columns) { return 2LL * grid * decode_sum_bytes(columns); }
// decode_counters() is the sum of the layers' Shape::row_blocks().

// Kernels for many rows of x (gemm_mainloop.cuh): output tiles of 128 rows of the weight by 64 rows of x ("columns").
constexpr int kTiledWarps = 4;
constexpr int kTiledThreads = 32 * kTiledWarps;
constexpr int kTiledRowBlocks = 2;
constexpr int kTiledColumns = 64;
constexpr int kTiledBlocksPerProcessor = 2;    // that a multiprocessor holds at once: registers
constexpr int kLeastTiledSteps = 16;           // of a block: with fewer, adding up parts takes longer; an estimate
constexpr int kTiledCapability = 80;           // earlier GPUs lack asynchronous copies
constexpr int kMostTiledRows = (1 << 20) - 1;  // of x

QAIG_BOTH int tiled_column_tiles(int rows) { return (rows + kTiledColumns - 1) / kTiledColumns; }
QAIG_BOTH long long tiled_outputs(const Shape& s, int rows) {  // tiles
    const long long row_tiles = (s.row_blocks() + kTiledRowBlocks - 1) / kTiledRowBlocks;
    return row_tiles * tiled_column_tiles(rows);
}
QAIG_BOTH long long tiled_steps(const Shape& s, int rows) { return tiled_outputs(s, rows) * s.tiles(); }
// Words of two row blocks and x, 64 slots each.
QAIG_BOTH int tiled_stage_bytes(int bits, int element_bytes) {
    return kTiledRowBlocks * bits * 512 + kTiledColumns * kTileSlots * element_bytes;
}
// Blocks of a launch whose layers have so many steps in all, fewer than kMostSteps.
QAIG_BOTH int tiled_grid(long long steps, int processors) {
    const long long most = static_cast<long long>(processors) * kTiledBlocksPerProcessor;
    const long long useful = (steps + kLeastTiledSteps - 1) / kLeastTiledSteps;
    return static_cast<int>(useful < most ? useful : most);
}
QAIG_BOTH long long tiled_partial_bytes(int grid) {
    return 2LL * grid * kTiledRowBlocks * kBlockRows * kTiledColumns * 4;
}
QAIG_BOTH long long tiled_counters(long long outputs) { return outputs * kTiledWarps; }

QAIG_BOTH int fused_stages(int bits) { return bits == 8 ? 3 : 4; }
QAIG_BOTH int fused_shared_bytes(int bits) { return fused_stages(bits) * tiled_stage_bytes(bits, 2); }

constexpr int kIntegerStages = 4;
QAIG_BOTH int integer_shared_bytes(int bits) { return kIntegerStages * tiled_stage_bytes(bits, 1); }

// Whether in_features channels can be rotated `block` at a time.
QAIG_BOTH bool has_rotation(int block, int in_features) {
    return block >= 16 && block <= 256 && (block & (block - 1)) == 0 && in_features % block == 0;
}

QAIG_BOTH int columns_grid(long long size) { return static_cast<int>((size + kColumnsThreads - 1) / kColumnsThreads); }

QAIG_BOTH int dequantize_grid_x(const Shape& s) { return (s.tiles() + 3) / 4; }
QAIG_BOTH int dequantize_grid_y(int start, int stop) {
    return (stop + kBlockRows - 1) / kBlockRows - start / kBlockRows;
}
// How far a launch of rows from `start` on may go, so that the grid is not too high.
constexpr int kMostGridY = 65535;
QAIG_BOTH int dequantize_stop(int start, int stop) {
    const long long most = (start / kBlockRows + kMostGridY) * static_cast<long long>(kBlockRows);
    return stop < most ? stop : static_cast<int>(most);
}

}  // namespace cuda
}  // namespace qaig
