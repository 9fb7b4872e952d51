// How the blocks of a decode launch share its work.
//
// The items (64 rows by 64 slots) of all layers form one line, layer after layer and row block after row block; an
// item of b bits is b steps long, as its bytes are. Block c of C has the items that begin in [c L / C, (c + 1) L / C),
// L being the length of the line. All of this is computed from the arguments, by every block alike.
#pragma once

#include "kernels.h"

namespace qaig {
namespace cuda {

QAIG_BOTH Shape shape_of(const QaigLayer& l) { return {l.out_features, l.in_features, l.group_size, l.bits}; }

struct Line {
    long long length;
    int blocks;

    QAIG_BOTH long long begin_of(int block) const { return block * length / blocks; }
    // The block that has what begins at `position`.
    QAIG_BOTH int block_at(long long position) const {
        return static_cast<int>(((position + 1) * blocks + length - 1) / length) - 1;
    }
};

QAIG_BOTH Line line_of(const QaigDecode& d, int blocks) {
    long long length = 0;
    for (int i = 0; i < d.layer_count; i++) {
        length += shape_of(d.layers[i]).items() * d.layers[i].bits;
    }
    return {length, blocks};
}

// First item of a layer that begins at or after `position`; `start` is where the layer begins.
QAIG_BOTH long long first_item(const QaigLayer& l, long long start, long long position) {
    const long long items = shape_of(l).items();
    if (position <= start) {
        return 0;
    }
    const long long item = (position - start + l.bits - 1) / l.bits;
    return item < items ? item : items;
}

}  // namespace cuda
}  // namespace qaig
