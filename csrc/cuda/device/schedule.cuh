// Stream-K: divides the work of a launch equally among its blocks.
//
// gemv: the work items (64 rows by 64 slots) of all layers form one sequence, layer after layer and row block after row
// block. A work item of b bits is b steps long, in proportion to its bytes. Every block has the same number of steps.
// If the division has a remainder, the first blocks have one step more. A block takes the work items that begin in its
// steps.
//
// gemm: the same, with output tiles in place of row blocks. A k-step is 64 slots of one output tile.
//
// Every block computes all of this from the arguments, in 32 bits: a division in 64 bits takes as long as some
// products.
#pragma once

#include "cuda/geometry.h"

namespace qaig {
namespace cuda {

// Divides by a constant of the launch with a multiplication: a division takes as long as loading a work item. The
// result is exact for numbers up to 2^24 whose product with the divisor is below 2^39. That holds for units divided by
// the units of a group. Groups of one unit are fewer than 2^24. Other weights have fewer than 2^20 units, in groups of
// at most 2^19.
struct FastDivisor {
    int divisor;
    unsigned long long inverse;  // 2^39 / divisor, rounded up

    QAIG_HOST_DEVICE int divide(int number) const {
        return static_cast<int>(static_cast<unsigned>(number) * inverse >> 39);
    }
};

QAIG_HOST_DEVICE FastDivisor fast_divisor(int divisor) {
    return {divisor, ((1ull << 39) + static_cast<unsigned>(divisor) - 1) / static_cast<unsigned>(divisor)};
}

struct StreamK {
    unsigned steps_per_block;
    unsigned remainder;  // this many first blocks have one step more

    QAIG_HOST_DEVICE unsigned begin_of(unsigned block) const {
        return block * steps_per_block + (block < remainder ? block : remainder);
    }
    // The block whose part contains `step`.
    QAIG_HOST_DEVICE unsigned block_at(unsigned step) const {
        const unsigned steps_of_first_blocks = remainder * (steps_per_block + 1);
        return step < steps_of_first_blocks ? step / (steps_per_block + 1)
                                            : remainder + (step - steps_of_first_blocks) / steps_per_block;
    }
};

QAIG_HOST_DEVICE StreamK gemv_schedule(const QaigMatmul& d, unsigned blocks) {
    unsigned length = 0;
    for (int i = 0; i < d.layer_count; i++) {
        length += static_cast<unsigned>(shape_of(d.layers[i]).work_items()) * d.layers[i].bits;
    }
    return {length / blocks, length % blocks};
}

// The k-steps and output tiles before a layer.
struct GemmLayerStart {
    unsigned k_steps, output_tiles;
};

QAIG_HOST_DEVICE GemmLayerStart gemm_layer_start(const QaigMatmul& d, int layer) {
    GemmLayerStart start = {0, 0};
    for (int i = 0; i < layer; i++) {
        const Shape s = shape_of(d.layers[i]);
        start.k_steps += static_cast<unsigned>(gemm_k_steps(s, d.rows));
        start.output_tiles += static_cast<unsigned>(gemm_output_tiles(s, d.rows));
    }
    return start;
}

QAIG_HOST_DEVICE StreamK gemm_schedule(const QaigMatmul& d, unsigned blocks) {
    const unsigned length = gemm_layer_start(d, d.layer_count).k_steps;
    return {length / blocks, length % blocks};
}

// A k-step of a layer: one tile of slots of one output tile. Output tiles with the same rows of the weight are
// consecutive, so that these rows stay in the cache.
struct TilePosition {
    int rows, columns, tile;

    QAIG_HOST_DEVICE void next_tile(int column_tiles) {
        tile = 0;
        if (++columns == column_tiles) {
            columns = 0, rows++;
        }
    }
    QAIG_HOST_DEVICE void advance(int tiles, int column_tiles) {
        if (++tile == tiles) {
            next_tile(column_tiles);
        }
    }
};

QAIG_HOST_DEVICE TilePosition position_of(int step, int tiles, int column_tiles) {
    const int output_tile = step / tiles;
    return {output_tile / column_tiles, output_tile % column_tiles, step % tiles};
}

// First work item of a layer that begins at or after `step`, given the layer's first step and its number of work items.
QAIG_HOST_DEVICE unsigned first_work_item(unsigned step, unsigned start, unsigned items, unsigned bits) {
    const unsigned item = step > start ? (step - start + bits - 1) / bits : 0;
    return item < items ? item : items;
}

}  // namespace cuda
}  // namespace qaig
