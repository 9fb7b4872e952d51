// A work item of the gemv, 64 rows of the weight by 64 slots: its position, its scales and zero points, its part of x.
#pragma once

#include "cuda/device/intrinsics.cuh"
#include "cuda/geometry.h"

namespace qaig {
namespace cuda {

// Where a warp is. The warps of a block take its work items in turn.
struct WorkItem {
    int row_block, tile;

    QAIG_MEMBER void advance(int items, int tiles) {
        for (tile += items; tile >= tiles; tile -= tiles) {
            row_block++;
        }
    }
};

// What a lane copies of a work item's groups: 16 bytes. Lanes 0 to 7 copy scales of the first unit's group. Lanes 8 to
// 15 copy those of the second unit's, and lanes 16 to 23 zero points of both. They lie in this order behind the work item's words.
struct GroupCopy {
    static constexpr int kScales = kBlockRows * 2 / 16, kZeros = kBlockRows / 16;  // pieces of a group

    const char* from;  // of the first group; null: nothing

    QAIG_MEMBER GroupCopy(const QaigLayer& l, int lane) : from(nullptr) {
        const int at = lane - 2 * kScales;
        if (at < 0) {
            from = static_cast<const char*>(l.scale) + lane % kScales * 16;
        } else if (at < 2 * kZeros && l.zero) {
            from = reinterpret_cast<const char*>(l.zero) + at % kZeros * 16;
        }
    }
    QAIG_MEMBER static int unit(int lane) { return (lane < 2 * kScales ? lane / kScales : lane / kZeros) % 2; }
    QAIG_MEMBER const uint4* of(long long group, int lane) const {
        return reinterpret_cast<const uint4*>(from + group * (16 * (lane < 2 * kScales ? kScales : kZeros)));
    }
};

// 16 bytes of x, for 8 slots of row 8 part + g, of each unit.
template <int parts>
struct InputOperands {
    uint4 of[parts][2];
};

}  // namespace cuda
}  // namespace qaig
