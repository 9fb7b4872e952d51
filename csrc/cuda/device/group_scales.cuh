// Loads the scales and zero points of a gemm's k-steps, group after group.
#pragma once

#include "cuda/device/elements.cuh"
#include "cuda/device/k_step.cuh"

namespace qaig {
namespace cuda {

// Scales and zero points of a k-step. Row 8 h + g of the warp's row tile r is at 2 r + h of four.
struct StepScales {
    uint2 scale[2];    // of each unit's group
    unsigned zero[2];  // a byte each
    bool one_group;    // both units are of one group
    bool ends;         // the second unit's group ends with it
};

// The scales of one group as float32, at 2 r + h.
struct RowScales {
    float at[4];
};

QAIG_DEVICE RowScales row_scales(const uint2& scale, int type) {
    return {low_float(type, scale.x), high_float(type, scale.x), low_float(type, scale.y), high_float(type, scale.y)};
}

// The group of a k-step's first unit, followed from k-step to k-step without divisions.
struct GroupPosition {
    int group, unit;  // and which of the group's units it is

    QAIG_MEMBER void advance(int units_per_group) {
        unit += 2;
        if (unit >= units_per_group) {
            unit -= units_per_group, group++;
            if (unit >= units_per_group) {  // one unit a group
                unit -= units_per_group, group++;
            }
        }
    }
};

template <int bits>
struct GroupScales {
    const QaigLayer& l;
    int groups, units_per_group;
    int first;  // of the lane's rows in the order of scales

    QAIG_MEMBER void load_group(StepScales& to, int unit, int row_block, int group) const {
        const long long at = (static_cast<long long>(row_block) * groups + group) * kBlockRows + first;
        constexpr unsigned kMiddle = (1u << (bits - 1)) * 0x01010101u;
        to.scale[unit] = load_global(reinterpret_cast<const uint2*>(static_cast<const unsigned short*>(l.scale) + at));
        to.zero[unit] = l.zero ? load_global(reinterpret_cast<const unsigned*>(l.zero + at)) : kMiddle;
    }

    QAIG_MEMBER void load(StepScales& to, int row_block, const GroupPosition& p) const {
        // A unit of padding follows an odd last unit. Any group serves for it.
        to.one_group = p.unit + 1 < units_per_group || p.group + 1 == groups;
        to.ends = to.one_group ? p.unit + 2 >= units_per_group : units_per_group == 1;
        load_group(to, 0, row_block, p.group);
        // Loaded again even if the group is the same: a copy would wait for the first load.
        load_group(to, 1, row_block, to.one_group ? p.group : p.group + 1);
    }

    QAIG_MEMBER GroupPosition at(int tile) const {
        const int group = 2 * tile / units_per_group;
        return {group, 2 * tile - group * units_per_group};
    }
};

}  // namespace cuda
}  // namespace qaig
