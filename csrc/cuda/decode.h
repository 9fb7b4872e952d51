// y = x W' + bias for up to 16 rows of x: what the decode kernels of all widths do.
//
// A warp multiplies one item (64 rows by 64 slots) at a time by all rows of x, on tensor cores: the weight is operand
// A, so that no row of a tile is wasted however few rows x has. The warps of a block take its items in turn, add up
// their sums in shared memory where a row block ends, and share row blocks with other blocks as kernels.h tells.
//
// Words travel to shared memory by asynchronous copies, some items ahead. Each lane copies what it reads itself, so
// nothing but its own copies need be waited for. x, scales and zero points are read into registers, one item ahead
// where there are enough of them.
#pragma once

#include "sums.h"
#include "unpack.h"

namespace qaig {
namespace cuda {

// What an item needs besides its words. `parts` is the number of eights of rows of x.
template <int parts>
struct Operands {
    uint4 x[parts][2];  // of each unit, 8 slots of row 8 part + g
    uint4 scale[2];     // of each unit's group, of the lane's 8 rows
    uint2 zero[2];
    bool one_group;  // both units are of one group
};

// One thread's share of one layer.
template <class T, int bits, int parts, bool mixed>
struct LayerPart {
    // Reading an item ahead takes registers: more than there are with 16 rows, or where widths share them.
    static constexpr bool kAhead = parts == 1 && !mixed;
    static constexpr int kStages = decode_stages(bits);
    using RowBlockSums = Sums<kRowTiles * parts>;  // those of row tile r and eight j of x's rows at r * parts + j

    const QaigDecode& d;
    const QaigLayer& l;
    Line line;
    unsigned start;      // first step of the layer
    unsigned* counters;  // of the layer's row blocks
    uint4* ring;         // this warp's stages
    float4* shared_sums;
    int tiles, groups, units_per_group;
    int warp, lane, g, t;

    QAIG_MEMBER void start_copy(int item, int stage) {
        const uint4* from = static_cast<const uint4*>(l.words) + static_cast<long long>(item) * (bits * 32) + lane;
        uint4* to = ring + stage * (bits * 32) + lane;
#pragma unroll
        for (int c = 0; c < bits; c++) {
            copy_async(to + c * 32, from + c * 32);
        }
    }

    QAIG_MEMBER void load_group(Operands<parts>& o, int unit, int row_block, int group) {
        const long long at = (static_cast<long long>(row_block) * groups + group) * 8 + g;
        constexpr unsigned kMiddle = (1u << (bits - 1)) * 0x01010101u;
        o.scale[unit] = load_global(static_cast<const uint4*>(l.scale) + at);
        o.zero[unit] = l.zero ? load_global(reinterpret_cast<const uint2*>(l.zero) + at) : uint2{kMiddle, kMiddle};
    }

    QAIG_MEMBER void load_operands(Operands<parts>& o, int item) {
        const int row_block = item / tiles, tile = item - row_block * tiles;
#pragma unroll
        for (int unit = 0; unit < 2; unit++) {
            const int slot = tile * kTileSlots + unit * kUnitSlots + 8 * t;
#pragma unroll
            for (int part = 0; part < parts; part++) {
                const int row = 8 * part + g;
                const auto* x = static_cast<const unsigned short*>(l.x) + row * l.x_stride + slot;
                o.x[part][unit] = row < d.rows && slot < l.x_slots ? load_global(reinterpret_cast<const uint4*>(x))
                                                                   : uint4{0, 0, 0, 0};
            }
        }
        const int group = 2 * tile / units_per_group;
        // An odd last unit is followed by one of padding, which any group will do for.
        o.one_group = 2 * tile + 1 < (group + 1) * units_per_group || group + 1 == groups;
        load_group(o, 0, row_block, group);
        if (o.one_group) {
            o.scale[1] = o.scale[0];
        } else {
            load_group(o, 1, row_block, group + 1);
        }
    }

    // Adds the products of one row tile within one group, which are integers' sums until the scale comes in here.
    QAIG_MEMBER void add_scaled(RowBlockSums& sums, int r, const float (&products)[parts][4], unsigned scales) {
        const float first = low_float(l.scale_type, scales), second = high_float(l.scale_type, scales);
#pragma unroll
        for (int part = 0; part < parts; part++) {
            float (&s)[4] = sums.at[r * parts + part];
            s[0] += first * products[part][0];
            s[1] += first * products[part][1];
            s[2] += second * products[part][2];
            s[3] += second * products[part][3];
        }
    }

    QAIG_MEMBER void multiply_item(RowBlockSums& sums, int stage, const Operands<parts>& o) {
        unsigned words[4 * bits];
#pragma unroll
        for (int c = 0; c < bits; c++) {
            const uint4 v = load_shared(ring + (stage * bits + c) * 32 + lane);
            words[4 * c] = v.x, words[4 * c + 1] = v.y, words[4 * c + 2] = v.z, words[4 * c + 3] = v.w;
        }
#pragma unroll
        for (int r = 0; r < kRowTiles; r++) {
            float products[parts][4] = {};
            Zero<T, bits> zero[2];
#pragma unroll
            for (int unit = 0; unit < 2; unit++) {
                if (unit == 0 || !o.one_group) {
                    if (unit == 1) {
                        add_scaled(sums, r, products, word_of(o.scale[0], r));
#pragma unroll
                        for (int i = 0; i < 4 * parts; i++) {
                            products[i / 4][i % 4] = 0;
                        }
                    }
                    const unsigned zeros = r < 2 ? o.zero[unit].x : o.zero[unit].y;
                    zero[0] = zero_of<T, bits>(zeros, r % 2 * 2);
                    zero[1] = zero_of<T, bits>(zeros, r % 2 * 2 + 1);
                }
#pragma unroll
                for (int step = 0; step < 2; step++) {
                    unsigned a[4];
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        a[j] = pair<T, bits>(words + r * bits, 8 * unit + 4 * step + j, zero[j % 2]);
                    }
#pragma unroll
                    for (int part = 0; part < parts; part++) {
                        const uint4& x = o.x[part][unit];
                        multiply_tiles(T(), products[part], a, word_of(x, 2 * step), word_of(x, 2 * step + 1));
                    }
                }
            }
            add_scaled(sums, r, products, word_of(o.scale[1], r));
        }
    }

    // Adds what the warps have and leaves it with warp 0, in an order that never changes.
    QAIG_MEMBER void add_warps(RowBlockSums& sums) {
#pragma unroll
        for (int from = kDecodeWarps - 1; from >= 0; from--) {
            if (warp == from) {
#pragma unroll
                for (int i = 0; i < kRowTiles * parts; i++) {
                    float (&s)[4] = sums.at[i];
                    float4* place = shared_sums + i * 32 + lane;
                    if (from < kDecodeWarps - 1) {
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

    // Leaves the sums of a part of a row block to the other blocks that have parts of it; see add_blocks of sums.h.
    QAIG_MEMBER bool add_parts(RowBlockSums& sums, int row_block) {
        const unsigned first_step = start + static_cast<unsigned>(row_block) * tiles * bits;
        const int first = line.block_at(first_step), last = line.block_at(first_step + (tiles - 1) * bits);
        auto* partials = reinterpret_cast<float4*>(d.partials);
        return add_blocks(sums, partials, kRowTiles * parts * 32, first, last, counters + row_block);
    }

    // Items [begin, end) of the layer. All warps meet at the end of every row block.
    QAIG_MEMBER void run(int begin, int end) {
        int copied = begin + warp;
        for (int stage = 0; stage < kStages - 1; stage++, copied += kDecodeWarps) {
            if (copied < end) {
                start_copy(copied, stage);
            }
            commit_copies();
        }
        Operands<parts> operands;
        int item = begin + warp, stage = 0;
        if (kAhead && item < end) {
            load_operands(operands, item);
        }
        for (int row_block = begin / tiles, from = begin; from < end; row_block++) {
            const int row_end = (row_block + 1) * tiles, to = row_end < end ? row_end : end;
            RowBlockSums sums = {};
            for (; item < to; item += kDecodeWarps) {
                Operands<parts> next;
                if constexpr (!kAhead) {
                    load_operands(operands, item);
                } else if (item + kDecodeWarps < end) {
                    load_operands(next, item + kDecodeWarps);
                }
                wait_copies<kStages - 2>();
                if (copied < end) {  // into the stage that was multiplied last time
                    start_copy(copied, stage == 0 ? kStages - 1 : stage - 1);
                }
                commit_copies();
                copied += kDecodeWarps;
                multiply_item(sums, stage, operands);
                stage = stage == kStages - 1 ? 0 : stage + 1;
                if constexpr (kAhead) {
                    operands = next;
                }
            }
            add_warps(sums);
            const bool from_start = from + tiles == row_end;
            if (warp == 0 && ((from_start && to == row_end) || add_parts(sums, row_block))) {
                store_sums<T, kRowTiles, parts>(l, d.rows, sums, row_block * kBlockRows, 0);
            }
            from = to;
        }
    }
};

template <class T, int bits, int columns, int kernel_bits = bits>
QAIG_DEVICE void decode_layer(const QaigDecode& d, int index, const Line& line, unsigned start, int counter, int begin,
                              int end, uint4* shared) {
    const QaigLayer& l = d.layers[index];
    const Shape s = shape_of(l);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint4* sums = shared;
    uint4* ring = shared + decode_sum_bytes(columns) / 16 + warp * (decode_warp_bytes(kernel_bits) / 16);
    LayerPart<T, bits, columns / 8, kernel_bits == kMixed> part = {d,
                                                                   l,
                                                                   line,
                                                                   start,
                                                                   d.counters + counter,
                                                                   ring,
                                                                   reinterpret_cast<float4*>(sums),
                                                                   s.tiles(),
                                                                   s.groups(),
                                                                   s.units_per_group(),
                                                                   warp,
                                                                   lane,
                                                                   lane / 4,
                                                                   lane % 4};
    part.run(begin, end);
}

// The kernel's body. `bits` of kMixed: each layer tells its own.
template <class T, int bits, int columns>
QAIG_DEVICE void decode(const QaigDecode& d) {
    QAIG_DYNAMIC_SHARED(shared);
    const Line line = line_of(d, gridDim.x);
    const unsigned from = line.begin_of(blockIdx.x), to = line.begin_of(blockIdx.x + 1);
    unsigned start = 0;
    int counter = 0;
    for (int i = 0; i < d.layer_count; i++) {
        const QaigLayer& l = d.layers[i];
        const Shape s = shape_of(l);
        const unsigned items = static_cast<unsigned>(s.items()), width = bits == kMixed ? l.bits : bits;
        const int begin = first_item(from, start, items, width), end = first_item(to, start, items, width);
        if (begin < end) {
            if constexpr (bits != kMixed) {
                decode_layer<T, bits, columns>(d, i, line, start, counter, begin, end, shared);
            } else if (l.bits == 2) {
                decode_layer<T, 2, columns, kMixed>(d, i, line, start, counter, begin, end, shared);
            } else if (l.bits == 3) {
                decode_layer<T, 3, columns, kMixed>(d, i, line, start, counter, begin, end, shared);
            } else if (l.bits == 4) {
                decode_layer<T, 4, columns, kMixed>(d, i, line, start, counter, begin, end, shared);
            } else {
                decode_layer<T, 8, columns, kMixed>(d, i, line, start, counter, begin, end, shared);
            }
        }
        start += items * width;
        counter += s.row_blocks();
    }
}

}  // namespace cuda
}  // namespace qaig

#define QAIG_DECODE_KERNEL(name, type, bits, columns)                                       \
    extern "C" __global__ void __launch_bounds__(128, 3) name(QAIG_ARGUMENT QaigDecode d) { \
        qaig::cuda::decode<qaig::cuda::type, bits, columns>(d);                             \
    }

// The four decode kernels of one width. `width` is how names write it: w2, w3, w4, w8 or mixed.
#define QAIG_DECODE_KERNELS(width, bits)                             \
    QAIG_DECODE_KERNEL(qaig_decode_##width##_f16_m8, F16, bits, 8)   \
    QAIG_DECODE_KERNEL(qaig_decode_##width##_f16_m16, F16, bits, 16) \
    QAIG_DECODE_KERNEL(qaig_decode_##width##_bf16_m8, BF16, bits, 8) \
    QAIG_DECODE_KERNEL(qaig_decode_##width##_bf16_m16, BF16, bits, 16)
