// How the blocks of a launch share its work.
//
// Decode: the items (64 rows by 64 slots) of all layers form one line, layer after layer and row block after row block;
// an item of b bits is b steps long, as its bytes are. Every block has the same number of steps, the first ones one
// more where that does not come out even, and of the items those that begin within. All of this is computed from the
// arguments, by every block alike, in 32 bits: a division in 64 takes as long as some of the products.
//
// Kernels for many rows: the same with output tiles in the place of row blocks, and steps of 64 slots of one tile.
#pragma once

#include "cuda/geometry.h"

namespace qaig {
namespace cuda {

// Division by what does not change, as a product: what a compiler makes of a division takes as long as loading an item.
// Exact for numbers up to 2^24 whose product with the divisor is below 2^39. Those of units by the units of a group are:
// of groups of one unit there are fewer than 2^24, and of all others fewer than 2^20 units, in groups of at most 2^19.
struct Quotient {
    int divisor;
    unsigned long long inverse;  // 2^39 / divisor, rounded up

    QAIG_BOTH int of(int number) const { return static_cast<int>(static_cast<unsigned>(number) * inverse >> 39); }
};

QAIG_BOTH Quotient quotient_of(int divisor) {
    return {divisor, ((1ull << 39) + static_cast<unsigned>(divisor) - 1) / static_cast<unsigned>(divisor)};
}

struct Line {
    unsigned share, longer;  // steps of a block, and how many blocks have one more

    QAIG_BOTH unsigned begin_of(unsigned block) const { return block * share + (block < longer ? block : longer); }
    // The block that has what begins at `step`.
    QAIG_BOTH unsigned block_at(unsigned step) const {
        const unsigned of_longer = longer * (share + 1);
        return step < of_longer ? step / (share + 1) : longer + (step - of_longer) / share;
    }
};

QAIG_BOTH Line line_of(const QaigDecode& d, unsigned blocks) {
    unsigned length = 0;
    for (int i = 0; i < d.layer_count; i++) {
        length += static_cast<unsigned>(shape_of(d.layers[i]).items()) * d.layers[i].bits;
    }
    return {length / blocks, length % blocks};
}

QAIG_BOTH Line tiled_line(const QaigDecode& d, unsigned blocks) {
    unsigned length = 0;
    for (int i = 0; i < d.layer_count; i++) {
        length += static_cast<unsigned>(tiled_steps(shape_of(d.layers[i]), d.rows));
    }
    return {length / blocks, length % blocks};
}

// A step of a layer: one tile of slots of one output tile. Output tiles of the same rows of the weight are neighbors:
// what one of them brings to the cache, the others find there.
struct TilePosition {
    int rows, columns, tile;

    QAIG_BOTH void next_tile(int column_tiles) {
        tile = 0;
        if (++columns == column_tiles) {
            columns = 0, rows++;
        }
    }
    QAIG_BOTH void advance(int tiles, int column_tiles) {
        if (++tile == tiles) {
            next_tile(column_tiles);
        }
    }
};

QAIG_BOTH TilePosition position_of(int step, int tiles, int column_tiles) {
    const int output_tile = step / tiles;
    return {output_tile / column_tiles, output_tile % column_tiles, step % tiles};
}

// First item of a layer that begins at or after `step`, given the layer's first step and its number of items.
QAIG_BOTH unsigned first_item(unsigned step, unsigned start, unsigned items, unsigned bits) {
    const unsigned item = step > start ? (step - start + bits - 1) / bits : 0;
    return item < items ? item : items;
}

}  // namespace cuda
}  // namespace qaig
