// x in slot order and, for 8 activation bits, as integers: one block a row.
#include "decode.h"

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

template <class T>
QAIG_DEVICE void arrange(const QaigArrange& a) {
    QAIG_SHARED_ARRAY(unsigned, of_warps, kArrangeThreads / 32);
    const Shape s = {0, a.in_features, a.group_size, 0};
    const long long row = blockIdx.x;
    const auto* x = static_cast<const unsigned short*>(a.x) + row * a.in_features;
    auto* out = static_cast<unsigned short*>(a.out) + row * a.slots;
    float scale = 1;
    bool round = false;
    if (a.token_scale) {
        unsigned largest = 0;
        for (int k = threadIdx.x; k < a.in_features; k += kArrangeThreads) {
            const unsigned v = bits_of(low_float(T(), load_global(x + k))) & 0x7fffffffu;
            largest = v > largest ? v : largest;
        }
        largest = largest_in_block(largest, of_warps);
        round = largest <= bits_of(kLargest);
        if (round) {
            const float most = float_of(largest);
            scale = divide(most > kSmallest ? most : kSmallest, 127.0f);
        }
        if (threadIdx.x == 0) {
            store_global(a.token_scale + row, scale);
        }
    }
    const int group_slots = s.units_per_group() * kUnitSlots;
    for (int slot = threadIdx.x; slot < a.slots; slot += kArrangeThreads) {
        const int group = slot / group_slots, in_group = slot - group * group_slots;
        unsigned v = 0;
        if (group < s.groups() && in_group < a.group_size) {
            v = load_global(x + group * a.group_size + in_group);
            if (round) {
                v = rounded(T(), round_to_integer(divide(low_float(T(), v), scale)));
            }
        }
        store_global(out + slot, static_cast<unsigned short>(v));
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
