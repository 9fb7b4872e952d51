// The geometry of a launch: blocks, threads, shared memory and workspace, from the sizes of the layers.
//
// Host and device use these functions. Python has the same (transformers_qaig/kernels/cuda/interface.py).
#pragma once

#include "cuda/arguments.h"

namespace qaig {
namespace cuda {

QAIG_HOST_DEVICE Shape shape_of(const QaigLayer& l) { return {l.out_features, l.in_features, l.group_size, l.bits}; }

constexpr int kGemvWarps = 4;
constexpr int kGemvThreads = 32 * kGemvWarps;
constexpr int kDequantizeThreads = 128;
constexpr int kQuantizeThreads = 256;
constexpr int kGptqThreads = 128;
constexpr int kMaxGptqColumns = 32;
constexpr float kIntegerDivisor = 128;
constexpr float kNotQuantized = 0;  // never a real token_scale, which is at least 1e-5 / 127
constexpr int kMixedBits = 0;       // stands for the bits of the mixed kernel

// gemv: stages of a warp in shared memory. A stage holds one work item, which is copied or multiplied.
QAIG_HOST_DEVICE int gemv_stages(int bits) { return bits == 2 ? 6 : bits == 3 ? 4 : bits == 4 ? 3 : 2; }
// The words of a work item, and scales and zero points of its row block in two groups, one for each unit.
QAIG_HOST_DEVICE int gemv_stage_bytes(int bits) { return bits * 512 + 2 * kBlockRows * 3; }
QAIG_HOST_DEVICE int gemv_warp_bytes(int bits) {
    return bits == kMixedBits ? gemv_warp_bytes(8) : gemv_stages(bits) * gemv_stage_bytes(bits);  // 8's are the most
}
QAIG_HOST_DEVICE int gemv_columns(int rows) { return rows <= 8 ? 8 : 16; }  // the 8 or 16 of _m8 and _m16
// Blocks that a multiprocessor holds at once. Registers limit them.
QAIG_HOST_DEVICE int gemv_blocks_per_processor(int columns) { return columns == 8 ? 3 : 2; }
// Upper bound of the steps of a launch: work items times bits (gemv), or k-steps (gemm), of all layers.
constexpr long long kMaxSteps = 1LL << 31;
QAIG_HOST_DEVICE int gemv_accumulator_bytes(int columns) { return kBlockRows * columns * 4; }
QAIG_HOST_DEVICE int gemv_shared_bytes(int bits, int columns) {
    return kGemvWarps * gemv_warp_bytes(bits) + gemv_accumulator_bytes(columns);
}

// Blocks of a launch, from the Shape::work_items() of all layers and the device's multiprocessors.
QAIG_HOST_DEVICE int gemv_grid(long long work_items, int processors, int columns) {
    const long long most = static_cast<long long>(processors) * gemv_blocks_per_processor(columns);
    const long long useful = (work_items + kGemvWarps - 1) / kGemvWarps;
    return static_cast<int>(useful < most ? useful : most);
}
QAIG_HOST_DEVICE long long gemv_workspace_bytes(int grid, int columns) {
    return 2LL * grid * gemv_accumulator_bytes(columns);
}
// The semaphores of a gemv are the sum of the layers' Shape::row_blocks().

// gemm (kernels/gemm_mainloop.cuh): output tiles of 128 rows of the weight by 64 rows of x ("columns"). A k-step is 64
// slots of one output tile.
constexpr int kGemmWarps = 4;
constexpr int kGemmThreads = 32 * kGemmWarps;
constexpr int kGemmRowBlocks = 2;
constexpr int kGemmColumns = 64;
constexpr int kGemmBlocksPerProcessor = 2;   // that a multiprocessor holds at once: registers limit them
constexpr int kMinGemmSteps = 16;            // of a block: with fewer, the split-K reduction takes longer (an estimate)
constexpr int kGemmCapability = 80;          // earlier GPUs lack asynchronous copies
constexpr int kMaxGemmRows = (1 << 20) - 1;  // of x

QAIG_HOST_DEVICE int gemm_column_tiles(int rows) { return (rows + kGemmColumns - 1) / kGemmColumns; }
QAIG_HOST_DEVICE long long gemm_output_tiles(const Shape& s, int rows) {
    const long long row_tiles = (s.row_blocks() + kGemmRowBlocks - 1) / kGemmRowBlocks;
    return row_tiles * gemm_column_tiles(rows);
}
QAIG_HOST_DEVICE long long gemm_k_steps(const Shape& s, int rows) { return gemm_output_tiles(s, rows) * s.tiles(); }
// Words of two row blocks and x, 64 slots each.
QAIG_HOST_DEVICE int gemm_stage_bytes(int bits, int element_bytes) {
    return kGemmRowBlocks * bits * 512 + kGemmColumns * kTileSlots * element_bytes;
}
// Blocks of a launch, from the k-steps of all layers (fewer than kMaxSteps).
QAIG_HOST_DEVICE int gemm_grid(long long steps, int processors) {
    const long long most = static_cast<long long>(processors) * kGemmBlocksPerProcessor;
    const long long useful = (steps + kMinGemmSteps - 1) / kMinGemmSteps;
    return static_cast<int>(useful < most ? useful : most);
}
QAIG_HOST_DEVICE long long gemm_workspace_bytes(int grid) {
    return 2LL * grid * kGemmRowBlocks * kBlockRows * kGemmColumns * 4;
}
QAIG_HOST_DEVICE long long gemm_semaphores(long long output_tiles) { return output_tiles * kGemmWarps; }

QAIG_HOST_DEVICE int gemm_f16_stages(int bits) { return bits == 8 ? 3 : 4; }
QAIG_HOST_DEVICE int gemm_f16_shared_bytes(int bits) { return gemm_f16_stages(bits) * gemm_stage_bytes(bits, 2); }

constexpr int kGemmI8Stages = 4;
QAIG_HOST_DEVICE int gemm_i8_shared_bytes(int bits) { return kGemmI8Stages * gemm_stage_bytes(bits, 1); }

// experts: columns of an output tile, which are rows of x of one expert: 8 or 16 by gemv, kGemmColumns by gemm. The
// mean number of rows decides. The thresholds are estimates.
QAIG_HOST_DEVICE int experts_columns(int rows, int experts, int capability) {
    const int most = capability < kGemmCapability ? 16 : kGemmColumns;
    return rows <= 4 * experts ? 8 : rows <= 12 * experts || most == 16 ? 16 : most;
}
// Upper bound of the column tiles of all experts.
QAIG_HOST_DEVICE int experts_column_tiles(int rows, int experts, int columns) {
    return (rows < experts ? rows : experts) + rows / columns;
}
QAIG_HOST_DEVICE int experts_row_tiles(const Shape& s, int columns) {
    return columns == kGemmColumns ? (s.row_blocks() + kGemmRowBlocks - 1) / kGemmRowBlocks : s.row_blocks();
}

// Whether in_features channels can be rotated `block` at a time.
QAIG_HOST_DEVICE bool has_rotation(int block, int in_features) {
    return block >= 16 && block <= 256 && (block & (block - 1)) == 0 && in_features % block == 0;
}

QAIG_HOST_DEVICE int gptq_columns_grid(long long size) {
    return static_cast<int>((size + kGptqThreads - 1) / kGptqThreads);
}

QAIG_HOST_DEVICE int dequantize_grid_x(const Shape& s) { return (s.tiles() + 3) / 4; }
QAIG_HOST_DEVICE int dequantize_grid_y(int start, int stop) {
    return (stop + kBlockRows - 1) / kBlockRows - start / kBlockRows;
}
// The last row of a launch that begins at `start`: CUDA limits the grid's height.
constexpr int kMaxGridY = 65535;
QAIG_HOST_DEVICE int dequantize_stop(int start, int stop) {
    const long long most = (start / kBlockRows + kMaxGridY) * static_cast<long long>(kBlockRows);
    return stop < most ? stop : static_cast<int>(most);
}

}  // namespace cuda
}  // namespace qaig
