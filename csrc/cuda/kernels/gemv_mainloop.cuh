// y = x W' + bias for up to 16 rows of x: the main loop of the gemv, which experts share.
//
// A warp multiplies one work item (64 rows by 64 slots) at a time by all rows of x, on tensor cores. The weight is
// operand A, so that tiles are full even if x has few rows. The warps of a block take its work items in turn. They add
// up their sums in shared memory where a row block ends. Blocks that share a row block use a split-K reduction.
//
// Global loads are issued several work items ahead, so a warp does not stall where it uses them. Asynchronous copies
// bring words, scales and zero points to shared memory. x is read into registers, one work item ahead.
#pragma once

#include "cuda/device/accumulators.cuh"
#include "cuda/device/unpack.cuh"
#include "cuda/device/work_item.cuh"

namespace qaig {
namespace cuda {

// One thread's part of one layer. With `split`, blocks may have parts of a row block.
template <class T, int bits, int fragments, bool split = true>
struct GemvLayer {
    static constexpr int kStages = gemv_stages(bits);
    static constexpr int kStageSize = gemv_stage_bytes(bits) / 16;
    // Sums of row tile r and fragment j, which is 8 rows of x, are at r * fragments + j.
    using RowBlockAccumulators = Accumulators<kRowTiles * fragments>;

    const QaigLayer& l;
    int rows;  // of x
    float* workspace;
    StreamK schedule;
    unsigned start;        // first step of the layer
    unsigned* semaphores;  // of the layer's row blocks
    uint4* ring;           // this warp's stages
    float4* shared_accumulators;
    int tiles, groups;
    FastDivisor group_of;  // of a unit
    int warp, lane, g;
    GroupCopy group_copy;
    bool has_zero;
    const uint4* x;          // the lane's slots of row g in the first tile
    int x_slots[fragments];  // of row 8 fragment + g, counted from the lane's first one; 0 without such a row

    // Whether both units of a tile are of `group`, which has the first unit. Most groups have an even number of units.
    // A unit of padding follows an odd last one. Any group serves for it.
    QAIG_MEMBER bool one_group(int tile, int group) const {
        return group_of.divisor % 2 == 0 || 2 * tile + 1 < (group + 1) * group_of.divisor || group + 1 == groups;
    }

    QAIG_MEMBER void start_copy(int item, const WorkItem& p, int stage) {
        const uint4* from = static_cast<const uint4*>(l.words) + static_cast<long long>(item) * (bits * 32) + lane;
        uint4* to = ring + stage * kStageSize + lane;
#pragma unroll
        for (int c = 0; c < bits; c++) {
            copy_async(to + c * 32, from + c * 32);
        }
        const int group = group_of.divide(2 * p.tile);
        const int unit = GroupCopy::unit(lane);
        if (group_copy.from && (unit == 0 || !one_group(p.tile, group))) {
            const long long at = static_cast<long long>(p.row_block) * groups + group + unit;
            copy_async(to + bits * 32, group_copy.source(at, lane));
        }
    }

    QAIG_MEMBER void load_x(InputOperands<fragments>& o, int tile) {
#pragma unroll
        for (int fragment = 0; fragment < fragments; fragment++) {
            const uint4* from = x + fragment * l.x_stride + static_cast<long long>(tile) * (kTileSlots / 8);
#pragma unroll
            for (int unit = 0; unit < 2; unit++) {
                const bool there = tile * kTileSlots + unit * kUnitSlots < x_slots[fragment];
                o.at[fragment][unit] = there ? load_global(from + unit * (kUnitSlots / 8)) : uint4{0, 0, 0, 0};
            }
        }
    }

    // Scales and adds the products of one row tile within one group. Until here they are sums of integers times x.
    QAIG_MEMBER void add_scaled(RowBlockAccumulators& sums, int r, const float (&products)[fragments][4],
                                unsigned scales) {
        const float first = low_float(l.scale_type, scales), second = high_float(l.scale_type, scales);
#pragma unroll
        for (int fragment = 0; fragment < fragments; fragment++) {
            float (&s)[4] = sums.at[r * fragments + fragment];
            s[0] += first * products[fragment][0];
            s[1] += first * products[fragment][1];
            s[2] += second * products[fragment][2];
            s[3] += second * products[fragment][3];
        }
    }

    // Multiplies one work item. With `same`, both units are of one group.
    template <bool same>
    QAIG_MEMBER void multiply_item(RowBlockAccumulators& sums, int stage, const InputOperands<fragments>& x) {
        const uint4* from = ring + stage * kStageSize;
        unsigned words[4 * bits];
        constexpr int kLast = same ? 0 : 1;  // unit of the work item's last group
        const uint4* scales = from + bits * 32 + g;
        const auto* zeros = reinterpret_cast<const uint2*>(from + bits * 32 + 2 * (kBlockRows / 8)) + g;
        constexpr unsigned kMiddle = (1u << (bits - 1)) * 0x01010101u;
        const uint4 scale[2] = {load_shared(scales), load_shared(scales + kLast * (kBlockRows / 8))};
        uint2 zero_words[2] = {{kMiddle, kMiddle}, {kMiddle, kMiddle}};
        if (has_zero) {
            zero_words[0] = load_shared(zeros), zero_words[1] = load_shared(zeros + kLast * (kBlockRows / 8));
        }
#pragma unroll
        for (int r = 0; r < kRowTiles; r++) {
#pragma unroll
            for (int c = (r * bits + 3) / 4; c < (r * bits + bits + 3) / 4;
                 c++) {  // words that earlier row tiles have not loaded
                const uint4 v = load_shared(from + c * 32 + lane);
                words[4 * c] = v.x, words[4 * c + 1] = v.y, words[4 * c + 2] = v.z, words[4 * c + 3] = v.w;
            }
            float products[fragments][4] = {};
            ZeroPoint<T, bits> zero[2];
#pragma unroll
            for (int unit = 0; unit < 2; unit++) {
                if (unit == 0 || !same) {
                    if (unit == 1) {
                        add_scaled(sums, r, products, word_of(scale[0], r));
#pragma unroll
                        for (int i = 0; i < 4 * fragments; i++) {
                            products[i / 4][i % 4] = 0;
                        }
                    }
                    const unsigned of_rows = r < 2 ? zero_words[unit].x : zero_words[unit].y;
                    zero[0] = zero_point_of<T, bits>(of_rows, r % 2 * 2);
                    zero[1] = zero_point_of<T, bits>(of_rows, r % 2 * 2 + 1);
                }
#pragma unroll
                for (int step = 0; step < 2; step++) {
                    unsigned a[4];
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        a[j] = unpack_pair<T, bits>(words + r * bits, 8 * unit + 4 * step + j, zero[j % 2]);
                    }
#pragma unroll
                    for (int fragment = 0; fragment < fragments; fragment++) {
                        const uint4& of = x.at[fragment][unit];
                        multiply_tiles(T(), products[fragment], a, word_of(of, 2 * step), word_of(of, 2 * step + 1));
                    }
                }
            }
            add_scaled(sums, r, products, word_of(scale[1], r));
        }
    }

    // Adds up the sums of all warps in warp 0, always in the same order.
    QAIG_MEMBER void reduce_across_warps(RowBlockAccumulators& sums) {
#pragma unroll
        for (int from = kGemvWarps - 1; from >= 0; from--) {
            if (warp == from) {
#pragma unroll
                for (int i = 0; i < kRowTiles * fragments; i++) {
                    float (&s)[4] = sums.at[i];
                    float4* place = shared_accumulators + i * 32 + lane;
                    if (from < kGemvWarps - 1) {
                        const float4 others = load_shared(place);
                        s[0] += others.x, s[1] += others.y, s[2] += others.z, s[3] += others.w;
                    }
                    if (from > 0) {
                        store_shared(place, float4{s[0], s[1], s[2], s[3]});
                    }
                }
            }
            block_barrier();
        }
    }

    // Adds this block's part of a row block to those of other blocks. Returns true in the last block.
    QAIG_MEMBER bool reduce_across_blocks(RowBlockAccumulators& sums, int row_block) {
        const unsigned first_step = start + static_cast<unsigned>(row_block) * tiles * bits;
        const int first = schedule.block_at(first_step), last = schedule.block_at(first_step + (tiles - 1) * bits);
        auto* slots = reinterpret_cast<float4*>(workspace);
        return split_k_reduce(sums, slots, kRowTiles * fragments * 32, first, last, semaphores + row_block);
    }

    // Computes work items [begin, end) of the layer. All warps synchronize at the end of every row block.
    QAIG_MEMBER void run(int begin, int end) {
        int item = begin + warp, ahead = item, stage = 0;
        const WorkItem first = {item / tiles, item % tiles};
        WorkItem now = first, copied = first;
        InputOperands<fragments> here, next;
        load_x(here, now.tile);
        for (int s = 0; s < kStages - 1; s++, ahead += kGemvWarps) {
            if (ahead < end) {
                start_copy(ahead, copied, s);
                copied.advance(kGemvWarps, tiles);
            }
            commit_copies();
        }
        for (int row_block = begin / tiles, from = begin; from < end; row_block++) {
            const int row_end = (row_block + 1) * tiles, to = row_end < end ? row_end : end;
            RowBlockAccumulators sums = {};
            for (; item < to; item += kGemvWarps, ahead += kGemvWarps) {
                const int tile = now.tile;
                now.advance(kGemvWarps, tiles);
                load_x(next, now.tile);  // of any tile if there are no more
                wait_copies<kStages - 2>();
                warp_barrier();     // other lanes' copies are complete, too, and they have left the stage before
                if (ahead < end) {  // into the stage that was multiplied last time
                    start_copy(ahead, copied, stage == 0 ? kStages - 1 : stage - 1);
                    copied.advance(kGemvWarps, tiles);
                }
                commit_copies();
                if (one_group(tile, group_of.divide(2 * tile))) {
                    multiply_item<true>(sums, stage, here);
                } else {
                    multiply_item<false>(sums, stage, here);
                }
                stage = stage == kStages - 1 ? 0 : stage + 1;
                here = next;
            }
            reduce_across_warps(sums);
            [[maybe_unused]] const bool from_start = from + tiles == row_end;
            if (warp == 0) {
                bool complete = true;
                if constexpr (split) {
                    complete = (from_start && to == row_end) || reduce_across_blocks(sums, row_block);
                }
                if (complete) {
                    store_accumulators<T, kRowTiles, fragments>(l, rows, sums, row_block * kBlockRows, 0);
                }
            }
            from = to;
        }
    }
};

// This thread's part of a layer, for `rows` rows of x. The caller sets the fields of the split-K reduction.
template <class T, int bits, int columns, bool split, int kernel_bits = bits>
QAIG_DEVICE GemvLayer<T, bits, columns / 8, split> gemv_layer(const QaigLayer& l, int rows, uint4* shared) {
    const Shape s = shape_of(l);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int g = lane / 4, t = lane % 4;
    uint4* sums = shared;
    uint4* ring = shared + gemv_accumulator_bytes(columns) / 16 + warp * (gemv_warp_bytes(kernel_bits) / 16);
    const auto* x = static_cast<const unsigned short*>(l.x) + g * l.x_stride + 8 * t;
    GemvLayer<T, bits, columns / 8, split> layer = {l,
                                                    rows,
                                                    nullptr,
                                                    {},
                                                    0,
                                                    nullptr,
                                                    ring,
                                                    reinterpret_cast<float4*>(sums),
                                                    s.tiles(),
                                                    s.groups(),
                                                    fast_divisor(s.units_per_group()),
                                                    warp,
                                                    lane,
                                                    g,
                                                    {l, lane},
                                                    l.zero != nullptr,
                                                    reinterpret_cast<const uint4*>(x),
                                                    {}};
#pragma unroll
    for (int i = 0; i < columns / 8; i++) {
        layer.x_slots[i] = 8 * i + g < rows ? l.x_slots - 8 * t : 0;
    }
    return layer;
}

}  // namespace cuda
}  // namespace qaig
