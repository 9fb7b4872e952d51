// y = x W' + bias for many rows of x: what kernels of this kind share, whatever type they multiply in.
//
// A block computes output tiles of 128 rows of the weight (two row blocks) by 64 rows of x ("columns"). Its four
// warps have 32 of the weight's rows each and all columns, so no code is unpacked twice. Slots come 64 at a time, a
// step: the words and x of some steps ahead travel to shared memory by asynchronous copies, through a ring of stages,
// while tensor cores multiply what is there. One barrier a step says both that all threads' copies have arrived and
// that the stage before is free again.
//
// The steps of all output tiles of all layers form one line that the blocks share equally; see schedule.cuh. A warp whose
// block has a part of an output tile adds it to the parts of others as accumulators.cuh tells.
//
// What is multiplied, and how, is a Product:
//
//   Type             F16 or BF16: of y
//   kBits, kStages
//   kElementBytes    of x: 2 or 1
//   Sums             TiledSums, or what has them as its base
//   static void multiply(Sums&, const Step<kBits, kElementBytes>&, const StepGroups&, const QaigLayer&)
//   static void finish(const QaigLayer&, int rows, int row, int column)    after a warp's part of y is stored
#pragma once

#include "cuda/device/group_scales.cuh"
#include "cuda/device/k_step.cuh"
#include "cuda/device/accumulators.cuh"
#include "cuda/device/unpack.cuh"

namespace qaig {
namespace cuda {

// One thread's share of one layer.
template <class Product>
struct TiledLayer {
    static constexpr int kBits = Product::kBits, kStages = Product::kStages;
    using ProductStep = Step<kBits, Product::kElementBytes>;
    static constexpr int kChunks = ProductStep::kChunks;
    static constexpr int kBlockWords = kBits * 32;  // of a row block, in 16 bytes
    static constexpr int kStageSize = kTiledRowBlocks * kBlockWords + kTiledColumns * kChunks;
    static constexpr int kWarpSums = kWarpTiles * kColumnParts * 32;  // float4

    const QaigDecode& d;
    const QaigLayer& l;
    Line line;
    unsigned start;      // first step of the layer
    unsigned* counters;  // of the layer's output tiles: one for each warp
    uint4* ring;
    int row_blocks, tiles, column_tiles;
    Groups<kBits> groups;
    int warp, lane;

    // The last output tile may lack a row block: its warps multiply another one again and keep nothing of it.
    QAIG_MEMBER bool has_rows(const TilePosition& p) const { return kTiledRowBlocks * p.rows + warp / 2 < row_blocks; }
    QAIG_MEMBER int row_block(const TilePosition& p) const {
        return has_rows(p) ? kTiledRowBlocks * p.rows + warp / 2 : row_blocks - 1;
    }

    // This thread's part of a step: words of its warp's row block, as any 64 threads copy theirs, and rows of x.
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
        constexpr int kElements = 16 / Product::kElementBytes, kRows = kTiledThreads / kChunks;
        const int chunk = threadIdx.x % kChunks, slot = p.tile * kTileSlots + chunk * kElements;
        const int row = threadIdx.x / kChunks, column = p.columns * kTiledColumns + row;
        const long long stride = l.x_stride * Product::kElementBytes;
        const char* x = static_cast<const char*>(l.x) + column * stride + slot * Product::kElementBytes;
        uint4* to_x = to + kTiledRowBlocks * kBlockWords + x_place<kChunks>(row, chunk);  // repeats after kRows
        const int columns = slot < l.x_slots ? d.rows : 0;
#pragma unroll
        for (int first = 0; first < kTiledColumns; first += kRows) {
            copy_async_or_zero(to_x + first * kChunks, reinterpret_cast<const uint4*>(x), column + first < columns);
            x += kRows * stride;
        }
    }

    QAIG_MEMBER ProductStep step_at(const TilePosition& p, int stage, bool last) const {
        const uint4* from = ring + stage * kStageSize;
        const int columns = d.rows - p.columns * kTiledColumns;
        return {from + warp / 2 * kBlockWords,
                from + kTiledRowBlocks * kBlockWords,
                warp % 2,
                lane,
                lane / 4,
                lane % 4,
                columns,
                last};
    }

    // Finishes an output tile, or the part of one that this block has.
    QAIG_MEMBER void finish(TiledSums& sums, const TilePosition& p, bool whole) {
        if (!has_rows(p)) {
            return;
        }
        if (!whole) {
            const int tile = p.rows * column_tiles + p.columns;
            const unsigned first_step = start + static_cast<unsigned>(tile) * tiles;
            auto* partials = reinterpret_cast<float4*>(d.partials) + warp * kWarpSums;
            if (!add_blocks(sums, partials, kTiledWarps * kWarpSums, line.block_at(first_step),
                            line.block_at(first_step + tiles - 1), counters + tile * kTiledWarps + warp)) {
                return;
            }
        }
        const int row = row_block(p) * kBlockRows + warp % 2 * (16 * kWarpTiles), column = p.columns * kTiledColumns;
        store_sums<typename Product::Type, kWarpTiles, kColumnParts>(l, d.rows, sums, row, column);
        Product::finish(l, d.rows, row, column);
    }

    // Steps [begin, end) of the layer.
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
        StepGroups here, next;
        groups.load(here, row_block(now), group);
        for (int step = begin, stage = 0; step < end; now.next_tile(column_tiles)) {
            const int rest = step + tiles - now.tile, to = rest < end ? rest : end;
            const bool whole = to - step == tiles;
            typename Product::Sums sums = {};
            for (; step < to; step++) {
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
                Product::multiply(sums, step_at(now, stage, step + 1 == to), here, l);
                stage = stage == kStages - 1 ? 0 : stage + 1;
                here = next;
                now.tile++;
            }
            finish(sums, now, whole);
        }
    }
};

// A kernel's body. Empty where it is never launched, see kTiledCapability.
template <class Product>
QAIG_DEVICE void multiply_tiled(const QaigDecode& d) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    QAIG_DYNAMIC_SHARED(shared);
    const Line line = tiled_line(d, gridDim.x);
    const unsigned from = line.begin_of(blockIdx.x), to = line.begin_of(blockIdx.x + 1);
    const int column_tiles = tiled_column_tiles(d.rows);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    unsigned start = 0;
    long long outputs = 0;  // of the layers before
    for (int i = 0; i < d.layer_count; i++) {
        const QaigLayer& l = d.layers[i];
        const Shape s = shape_of(l);
        const unsigned steps = static_cast<unsigned>(tiled_steps(s, d.rows));
        const int begin = first_item(from, start, steps, 1), end = first_item(to, start, steps, 1);
        if (begin < end) {
            const Groups<Product::kBits> groups = {l, s.groups(), s.units_per_group(),
                                                   8 * (lane / 4) + 2 * kWarpTiles * (warp % 2)};
            TiledLayer<Product> layer = {d,
                                         l,
                                         line,
                                         start,
                                         d.counters + tiled_counters(outputs),
                                         shared,
                                         s.row_blocks(),
                                         s.tiles(),
                                         column_tiles,
                                         groups,
                                         warp,
                                         lane};
            layer.run(begin, end);
        }
        start += steps;
        outputs += tiled_outputs(s, d.rows);
    }
#endif
}

}  // namespace cuda
}  // namespace qaig
