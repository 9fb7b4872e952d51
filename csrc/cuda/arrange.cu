// x in slot order and, for 8 activation bits, rotated if need be and as integers: one block a row.
#include "rotation.h"

namespace qaig {
namespace cuda {
namespace {

constexpr float kLargest = 1e30f;  // `reference.LARGEST_8_BIT`
constexpr float kSmallest = 1e-5f;

// The largest of a block's values, by their bits: those of absolute values are ordered, NaN above infinity.
QAIG_DEVICE unsigned largest_in_block(unsigned v, unsigned* of_warps) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        const unsigned other = shuffle_xor(v, mask);
        v = v > other ? v : other;
    }
    if (threadIdx.x % 32 == 0) {
        store_shared(of_warps + threadIdx.x / 32, v);
    }
    block_barrier();
    for (int warp = 0; warp < kArrangeThreads / 32; warp++) {
        const unsigned other = load_shared(of_warps + warp);
        v = v > other ? v : other;
    }
    return v;
}

QAIG_DEVICE unsigned larger(unsigned a, float b) {
    const unsigned v = bits_of(b) & 0x7fffffffu;
    return v > a ? v : a;
}

// How a row is rounded to integers.
struct Rounding {
    float scale = 1;
    bool any = false;

    template <class T>
    QAIG_MEMBER unsigned operator()(T type, float v) const {
        return rounded(type, any ? round_to_integer(divide(v, scale)) : v);
    }
};

QAIG_DEVICE Rounding rounding_of(unsigned largest) {
    Rounding r;
    r.any = largest <= bits_of(kLargest);
    if (r.any) {
        const float most = float_of(largest);
        r.scale = divide(most > kSmallest ? most : kSmallest, 127.0f);
    }
    return r;
}

template <class T>
QAIG_DEVICE void arrange(const QaigArrange& a) {
    QAIG_SHARED_ARRAY(unsigned, of_warps, kArrangeThreads / 32);
    const Shape s = {0, a.in_features, a.group_size, 0};
    const long long row = blockIdx.x;
    const auto* x = static_cast<const unsigned short*>(a.x) + row * a.in_features;
    auto* out = static_cast<unsigned short*>(a.out) + row * a.slots;
    // Where rows are rotated, a warp takes this many channels at a time, and each lane eight of them.
    const int first = static_cast<int>(threadIdx.x) / 32 * kRotated, lane = threadIdx.x % 32;
    constexpr int kStride = kArrangeThreads / 32 * kRotated;
    Rounding rounding;
    if (a.token_scale) {
        unsigned largest = 0;
        if (a.rotation_block) {
            for (int k = first; k < a.in_features; k += kStride) {
                float v[8];
                load_rotated(T(), a, x, k + 8 * lane, v);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    largest = larger(largest, v[i]);
                }
            }
        } else {
            for (int k = threadIdx.x; k < a.in_features; k += kArrangeThreads) {
                largest = larger(largest, low_float(T(), load_global(x + k)));
            }
        }
        rounding = rounding_of(largest_in_block(largest, of_warps));
        if (threadIdx.x == 0) {
            store_global(a.token_scale + row, rounding.scale);
        }
    }
    const int group_slots = s.units_per_group() * kUnitSlots;
    for (int slot = threadIdx.x; slot < a.slots; slot += kArrangeThreads) {
        const int group = slot / group_slots, in_group = slot - group * group_slots;
        const bool there = group < s.groups() && in_group < a.group_size;
        if (there && a.rotation_block) {
            continue;
        }
        unsigned v = there ? load_global(x + group * a.group_size + in_group) : 0;
        if (there && rounding.any) {
            v = rounding(T(), low_float(T(), v));
        }
        store_global(out + slot, static_cast<unsigned short>(v));
    }
    if (a.rotation_block) {
        for (int k = first; k < a.in_features; k += kStride) {
            float v[8];
            const int channel = k + 8 * lane;
            load_rotated(T(), a, x, channel, v);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                if (channel + i < a.in_features) {
                    const int group = (channel + i) / a.group_size, in_group = channel + i - group * a.group_size;
                    store_global(out + group * group_slots + in_group,
                                 static_cast<unsigned short>(rounding(T(), v[i])));
                }
            }
        }
    }
}

}  // namespace
}  // namespace cuda
}  // namespace qaig

extern "C" __global__ void __launch_bounds__(256) qaig_arrange_f16(QAIG_ARGUMENT QaigArrange a) {
    qaig::cuda::arrange<qaig::cuda::F16>(a);
}

extern "C" __global__ void __launch_bounds__(256) qaig_arrange_bf16(QAIG_ARGUMENT QaigArrange a) {
    qaig::cuda::arrange<qaig::cuda::BF16>(a);
}
