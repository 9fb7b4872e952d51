// A work item of the gemv, 64 rows of the weight by 64 slots: its position, scales, zero points and x.
#pragma once

#include "cuda/device/intrinsics.cuh"
#include "cuda/geometry.h"

namespace qaig {
namespace cuda {

// The position of a warp. The warps of a block take its work items in turn.
struct WorkItem {
    int row_block, tile;

    QAIG_MEMBER void advance(int items, int tiles) {
        for (tile += items; tile >= tiles; tile -= tiles) {
            row_block++;
        }
    }
};

// The 16 bytes of scales or zero points that a lane copies. Lanes 0 to 7 copy scales of the first unit's group, lanes 8
// to 15 those of the second unit's. Lanes 16 to 23 copy zero points of both. They follow the work item's words in this
// order.
struct GroupCopy {
    static constexpr int kScales = kBlockRows * 2 / 16, kZeros = kBlockRows / 16;  // copies for a group

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
    QAIG_MEMBER const uint4* source(long long group, int lane) const {
        return reinterpret_cast<const uint4*>(from + group * (16 * (lane < 2 * kScales ? kScales : kZeros)));
    }
};

// Operand B: 16 bytes of x for each unit, which are 8 slots of row 8 fragment + g.
template <int fragments>
struct InputOperands {
    uint4 at[fragments][2];
};

}  // namespace cuda
}  // namespace qaig
