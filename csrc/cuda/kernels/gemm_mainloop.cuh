// y = x W' + bias for many rows of x: the main loop that gemm_f16 and gemm_i8 share.
//
// A block computes output tiles of 128 rows of the weight (two row blocks) by 64 rows of x ("columns"). Its four warps
// have 32 of the weight's rows each and all columns, so no code is unpacked twice. A k-step has 64 slots. Tensor cores
// multiply the current k-step. Meanwhile asynchronous copies bring words and x of the next ones into a ring of stages
// in shared memory. One barrier a k-step ensures that all threads' copies are complete, and that the previous stage is
// free.
//
// The k-steps of all output tiles of all layers form one sequence, of which every block takes an equal part: stream-K
// (schedule.cuh). If several blocks have parts of one output tile, a split-K reduction adds them up (accumulators.cuh).
//
// What a Product provides:
//
//   Type             F16 or BF16: of y
//   kBits, kStages
//   kElementBytes    of x: 2 or 1
//   Accumulators     GemmAccumulators, or a type with that base
//   static void multiply(Accumulators&, const KStep<kBits, kElementBytes>&, const StepScales&, const QaigLayer&)
//   static void finish(const QaigLayer&, int rows, int row, int column)    runs after a warp has stored its part of y
#pragma once

#include "cuda/device/group_scales.cuh"
#include "cuda/device/k_step.cuh"
#include "cuda/device/accumulators.cuh"
#include "cuda/device/unpack.cuh"

namespace qaig {
namespace cuda {

// One thread's part of one layer. With `split`, blocks may have parts of an output tile.
template <class Product, bool split = true>
struct GemmLayer {
    static constexpr int kBits = Product::kBits, kStages = Product::kStages;
    using ProductStep = KStep<kBits, Product::kElementBytes>;
    static constexpr int kChunks = ProductStep::kChunks;
    static constexpr int kBlockWords = kBits * 32;  // of a row block, in 16 bytes
    static constexpr int kStageSize = kGemmRowBlocks * kBlockWords + kGemmColumns * kChunks;
    static constexpr int kWarpAccumulators = kWarpTiles * kColumnFragments * 32;  // float4

    const QaigLayer& l;
    int rows;             // of x
    const QaigMatmul* d;  // of stream-K; null if not `split`
    int index;            // of the layer
    uint4* ring;
    int row_blocks, tiles, column_tiles;
    GroupScales<kBits> groups;
    int warp, lane;

    // The last output tile may lack a row block. Its warps then multiply the row block before, and drop the result.
    QAIG_MEMBER bool has_rows(const TilePosition& p) const { return kGemmRowBlocks * p.rows + warp / 2 < row_blocks; }
    QAIG_MEMBER int row_block(const TilePosition& p) const {
        return has_rows(p) ? kGemmRowBlocks * p.rows + warp / 2 : row_blocks - 1;
    }

    // Starts this thread's copies of a k-step. 64 threads copy the words of a row block, all threads copy rows of x.
    QAIG_MEMBER void start_copy(const TilePosition& p, int stage) {
        uint4* to = ring + stage * kStageSize;
        const long long item = static_cast<long long>(row_block(p)) * tiles + p.tile;
        const uint4* words = static_cast<const uint4*>(l.words) + item * kBlockWords;
        uint4* to_words = to + warp / 2 * kBlockWords;
#pragma unroll
        for (int first = 0; first < kBlockWords; first += 64) {
            const int at = first + static_cast<int>(threadIdx.x) % 64;
            if (kBlockWords % 64 == 0 || at < kBlockWords) {
                copy_async(to_words + at, words + at);
            }
        }
        constexpr int kElements = 16 / Product::kElementBytes, kRows = kGemmThreads / kChunks;
        const int chunk = threadIdx.x % kChunks, slot = p.tile * kTileSlots + chunk * kElements;
        const int row = threadIdx.x / kChunks, column = p.columns * kGemmColumns + row;
        const long long stride = l.x_stride * Product::kElementBytes;
        const char* x = static_cast<const char*>(l.x) + column * stride + slot * Product::kElementBytes;
        uint4* to_x =
            to + kGemmRowBlocks * kBlockWords + swizzled<kChunks>(row, chunk);  // the swizzle repeats after kRows
        const int columns = slot < l.x_slots ? rows : 0;
#pragma unroll
        for (int first = 0; first < kGemmColumns; first += kRows) {
            copy_async_or_zero(to_x + first * kChunks, reinterpret_cast<const uint4*>(x), column + first < columns);
            x += kRows * stride;
        }
    }

    QAIG_MEMBER ProductStep step_at(const TilePosition& p, int stage, bool last) const {
        const uint4* from = ring + stage * kStageSize;
        const int columns = rows - p.columns * kGemmColumns;
        return {from + warp / 2 * kBlockWords,
                from + kGemmRowBlocks * kBlockWords,
                warp % 2,
                lane,
                lane / 4,
                lane % 4,
                columns,
                last};
    }

    // Reduces and stores an output tile, or this block's part of one.
    QAIG_MEMBER void finish(GemmAccumulators& sums, const TilePosition& p, bool whole) {
        if (!has_rows(p)) {
            return;
        }
        if (split && !whole) {
            const int tile = p.rows * column_tiles + p.columns;
            // Computed again here, to save registers in the main loop.
            const StreamK schedule = gemm_schedule(*d, grid_blocks());
            const GemmLayerStart start = gemm_layer_start(*d, index);
            const unsigned first_step = start.k_steps + static_cast<unsigned>(tile) * tiles;
            auto* workspace = reinterpret_cast<float4*>(d->workspace) + warp * kWarpAccumulators;
            unsigned* semaphore = d->semaphores + gemm_semaphores(start.output_tiles + tile) + warp;
            if (!split_k_reduce(sums, workspace, kGemmWarps * kWarpAccumulators, schedule.block_at(first_step),
                                schedule.block_at(first_step + tiles - 1), semaphore)) {
                return;
            }
        }
        const int row = row_block(p) * kBlockRows + warp % 2 * (16 * kWarpTiles), column = p.columns * kGemmColumns;
        store_accumulators<typename Product::Type, kWarpTiles, kColumnFragments>(l, rows, sums, row, column);
        Product::finish(l, rows, row, column);
    }

    // Computes k-steps [begin, end) of the layer.
    QAIG_MEMBER void run(int begin, int end) {
        TilePosition now = position_of(begin, tiles, column_tiles), copied = now;
        block_barrier();  // the stages may still be in use for the layer before
#pragma unroll 1
        for (int stage = 0; stage < kStages - 1; stage++) {
            if (begin + stage < end) {
                start_copy(copied, stage);
                copied.advance(tiles, column_tiles);
            }
            commit_copies();
        }
        GroupPosition group = groups.at(now.tile);
        StepScales here, next;
        groups.load(here, row_block(now), group);
        for (int step = begin, stage = 0; step < end; now.next_tile(column_tiles)) {
            const bool whole = now.tile == 0 && end - step >= tiles;
            typename Product::Accumulators sums = {};
            for (bool last = false; !last; step++) {
                last = now.tile + 1 == tiles || step + 1 == end;
                TilePosition ahead = now;
                ahead.advance(tiles, column_tiles);
                if (ahead.tile > 0) {
                    group.advance(groups.units_per_group);
                } else {
                    group = {0, 0};
                }
                next = here;
                if (step + 1 < end) {
                    groups.load(next, row_block(ahead), group);
                }
                wait_copies<kStages - 2>();
                block_barrier();
                if (step + kStages - 1 < end) {  // into the stage that was multiplied last time
                    start_copy(copied, stage == 0 ? kStages - 1 : stage - 1);
                    copied.advance(tiles, column_tiles);
                }
                commit_copies();
                Product::multiply(sums, step_at(now, stage, last), here, l);
                stage = stage == kStages - 1 ? 0 : stage + 1;
                here = next;
                now.tile++;
            }
            finish(sums, now, whole);
        }
    }
};

template <class Product, bool split>
QAIG_DEVICE GemmLayer<Product, split> gemm_layer(const QaigLayer& l, int rows, uint4* shared,
                                                 const QaigMatmul* d = nullptr, int index = 0) {
    const Shape s = shape_of(l);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    return {l,
            rows,
            d,
            index,
            shared,
            s.row_blocks(),
            s.tiles(),
            gemm_column_tiles(rows),
            {l, s.groups(), s.units_per_group(), 8 * (lane / 4) + 2 * kWarpTiles * (warp % 2)},
            warp,
            lane};
}

// A kernel's body. Empty for GPUs that never launch it, see kGemmCapability.
template <class Product>
QAIG_DEVICE void gemm(const QaigMatmul& d) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    QAIG_DYNAMIC_SHARED(shared);
    for (int i = 0; i < d.layer_count; i++) {
        const QaigLayer& l = d.layers[i];
        const StreamK schedule =
            gemm_schedule(d, grid_blocks());  // computed for each layer, to save registers in its main loop
        const unsigned from = schedule.begin_of(blockIdx.x), to = schedule.begin_of(blockIdx.x + 1);
        const unsigned start = gemm_layer_start(d, i).k_steps;
        const unsigned steps = static_cast<unsigned>(gemm_k_steps(shape_of(l), d.rows));
        const int begin = first_work_item(from, start, steps, 1), end = first_work_item(to, start, steps, 1);
        if (begin < end) {
            gemm_layer<Product, true>(l, d.rows, shared, &d, i).run(begin, end);
        }
    }
#endif
}

}  // namespace cuda
}  // namespace qaig
