// Dequantizes rows of a packed weight: (code - zero) * scale in float32, rounded once. A warp takes one work item.
#pragma once

#include "cuda/device/elements.cuh"
#include "cuda/device/unpack.cuh"

namespace qaig {
namespace cuda {

// Stores the first `count` of eight values, in one store if they are aligned and complete.
template <class T>
QAIG_DEVICE void store_eight(unsigned short* out, const float (&values)[8], int count, bool aligned) {
    if (aligned && count == 8) {
        uint4 v;
        v.x = rounded(T(), values[0]) | rounded(T(), values[1]) << 16;
        v.y = rounded(T(), values[2]) | rounded(T(), values[3]) << 16;
        v.z = rounded(T(), values[4]) | rounded(T(), values[5]) << 16;
        v.w = rounded(T(), values[6]) | rounded(T(), values[7]) << 16;
        store_global(reinterpret_cast<uint4*>(out), v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (i < count) {
            store_global(out + i, static_cast<unsigned short>(rounded(T(), values[i])));
        }
    }
}

template <int bits>
QAIG_DEVICE void dequantize(const QaigDequantize& d) {
    const Shape s = {d.out_features, d.in_features, d.group_size, bits};
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int row_block = d.start / kBlockRows + blockIdx.y, tile = blockIdx.x * 4 + warp;
    if (tile >= s.tiles()) {
        return;
    }
    const long long item = static_cast<long long>(row_block) * s.tiles() + tile;
    const uint4* from = static_cast<const uint4*>(d.words) + item * (bits * 32) + lane;
    unsigned words[4 * bits];
#pragma unroll
    for (int c = 0; c < bits; c++) {
        const uint4 v = load_global(from + c * 32);
        words[4 * c] = v.x, words[4 * c + 1] = v.y, words[4 * c + 2] = v.z, words[4 * c + 3] = v.w;
    }
    const bool aligned = d.in_features % 8 == 0 && d.group_size % 8 == 0;
    for (int unit = 0; unit < 2; unit++) {
        const int at = 2 * tile + unit, group = at / s.units_per_group();
        const int in_group = (at - group * s.units_per_group()) * kUnitSlots + 8 * t, count = d.group_size - in_group;
        if (group >= s.groups() || count <= 0) {
            continue;
        }
#pragma unroll
        for (int i = 0; i < 2 * kRowTiles; i++) {  // the lane's rows
            const int r = i / 2, h = i % 2, row = row_block * kBlockRows + 16 * r + 8 * h + g;
            if (row < d.start || row >= d.stop) {
                continue;
            }
            const long long of_group =
                (static_cast<long long>(row_block) * s.groups() + group) * kBlockRows + 8 * g + i;
            const float scale = load_float(d.scale, d.scale_type, of_group);
            const int zero = d.zero ? static_cast<int>(load_global(d.zero + of_group)) : 1 << (bits - 1);
            float values[8];
#pragma unroll
            for (int e = 0; e < 8; e++) {  // slot e of 8 is in pair 4 (e / 4) + 2 (e / 2 % 2) + h of the unit's 8
                const int first = 4 * (e / 4) + 2 * (e / 2 % 2) + h;
                const unsigned in_first = unpack_code<bits>(words + r * bits, first, e % 2);
                const unsigned in_second = unpack_code<bits>(words + r * bits, 8 + first, e % 2);
                values[e] = multiply(static_cast<float>(static_cast<int>(unit ? in_second : in_first) - zero), scale);
            }
            const long long to = static_cast<long long>(row - d.start) * d.in_features +
                                 static_cast<long long>(group) * d.group_size + in_group;
            if (d.type == QAIG_F32) {
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    if (e < count) {
                        store_global(static_cast<float*>(d.out) + to + e, values[e]);
                    }
                }
            } else if (d.type == QAIG_F16) {
                store_eight<F16>(static_cast<unsigned short*>(d.out) + to, values, count < 8 ? count : 8, aligned);
            } else {
                store_eight<BF16>(static_cast<unsigned short*>(d.out) + to, values, count < 8 ? count : 8, aligned);
            }
        }
    }
}

}  // namespace cuda
}  // namespace qaig

#define QAIG_DEQUANTIZE_KERNEL(bits)                                                                               \
    extern "C" __global__ void __launch_bounds__(128, 4) qaig_dequantize_w##bits(QAIG_ARGUMENT QaigDequantize d) { \
        qaig::cuda::dequantize<bits>(d);                                                                           \
    }
