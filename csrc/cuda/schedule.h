// How the blocks of a decode launch share its work.
//
// The items (64 rows by 64 slots) of all layers form one line, layer after layer and row block after row block; an
// item of b bits is b steps long, as its bytes are. Every block has the same number of steps, the first ones one more
// where that does not come out even, and of the items those that begin within. All of this is computed from the
// arguments, by every block alike, in 32 bits: a division in 64 takes as long as some of the products.
#pragma once

#include "kernels.h"

namespace qaig {
namespace cuda {

QAIG_BOTH Shape shape_of(const QaigLayer& l) { return {l.out_features, l.in_features, l.group_size, l.bits}; }

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

// First item of a layer that begins at or after `step`, given the layer's first step and its number of items.
QAIG_BOTH unsigned first_item(unsigned step, unsigned start, unsigned items, unsigned bits) {
    const unsigned item = step > start ? (step - start + bits - 1) / bits : 0;
    return item < items ? item : items;
}

}  // namespace cuda
}  // namespace qaig
