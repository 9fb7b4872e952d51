// Copies x into slot order. For 8 activation bits it also rotates x, if there is a rotation, and rounds it to integers.
// A block takes one row.
#include "cuda/device/hadamard.cuh"
#include "cuda/geometry.h"

namespace qaig {
namespace cuda {
namespace {

constexpr float kLargest = 1e30f;  // `reference.LARGEST_8_BIT`
constexpr float kSmallest = 1e-5f;
constexpr unsigned kInfinity = 0x7f800000u;  // the bits of larger values are those of NaNs

// The largest of a block's absolute values, as bits. Bits have the order of the values, with NaN above infinity.
QAIG_DEVICE unsigned block_max(unsigned v, unsigned* of_warps) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        const unsigned other = shuffle_xor(v, mask);
        v = v > other ? v : other;
    }
    if (threadIdx.x % 32 == 0) {
        store_shared(of_warps + threadIdx.x / 32, v);
    }
    block_barrier();
    for (int warp = 0; warp < kQuantizeThreads / 32; warp++) {
        const unsigned other = load_shared(of_warps + warp);
        v = v > other ? v : other;
    }
    return v;
}

// The larger of `largest` and the absolute values of `v`, as bits.
QAIG_DEVICE unsigned update_absmax(unsigned largest, const float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const unsigned absolute = bits_of(v[i]) & 0x7fffffffu;
        largest = absolute > largest ? absolute : largest;
    }
    return largest;
}

// Loads `count` values from x on, then zeros.
template <class T>
QAIG_DEVICE void load_eight(T type, const unsigned short* x, int count, bool aligned, float (&v)[8]) {
    if (aligned && count == 8) {
        const uint4 words = load_global(reinterpret_cast<const uint4*>(x));
        const unsigned pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[i] = i % 2 ? high_float(type, pairs[i / 2]) : low_float(type, pairs[i / 2]);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        v[i] = i < count ? low_float(type, load_global(x + i)) : 0.0f;
    }
}

// The destination of a row, and how its values are stored.
template <class T>
struct Row {
    unsigned short* out;
    bool rounded, bytes;
    float scale;  // of a rounded row

    // Rounds values to the integers that are stored.
    QAIG_MEMBER void round(float (&v)[8]) const {
        if (rounded) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float integer = round_to_integer(divide(v[i], scale));
                v[i] = bytes ? integer : multiply(integer, 1 / kIntegerDivisor);
            }
        }
    }

    QAIG_MEMBER unsigned byte(float v) const { return static_cast<unsigned>(static_cast<int>(v)) & 255u; }
    QAIG_MEMBER unsigned element(float v) const { return qaig::cuda::rounded(T(), v); }

    QAIG_MEMBER void store(int slot, float v) const {
        if (bytes) {
            auto* to = reinterpret_cast<unsigned char*>(out) + byte_place(slot);
            store_global(to, static_cast<unsigned char>(byte(v)));
        } else {
            store_global(out + slot, static_cast<unsigned short>(element(v)));
        }
    }

    // Stores eight slots from `slot` on, a multiple of 8.
    QAIG_MEMBER void store_eight(int slot, const float (&v)[8]) const {
        if (bytes) {
            unsigned in_place[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                in_place[byte_place(i)] = byte(v[i]);
            }
            uint2 words = {0, 0};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                words.x |= in_place[i] << 8 * i;
                words.y |= in_place[4 + i] << 8 * i;
            }
            store_global(reinterpret_cast<uint2*>(reinterpret_cast<char*>(out) + byte_place(slot)), words);
        } else {
            uint4 words;
            words.x = element(v[0]) | element(v[1]) << 16;
            words.y = element(v[2]) | element(v[3]) << 16;
            words.z = element(v[4]) | element(v[5]) << 16;
            words.w = element(v[6]) | element(v[7]) << 16;
            store_global(reinterpret_cast<uint4*>(out + slot), words);
        }
    }
};

// Calls use(k, v) with the values of channels k to k + 7, rotated if there is a rotation. The block's threads take
// eight channels each in turn. Values beyond the last channel are zeros.
template <class T, class Use>
QAIG_DEVICE void for_channels(const QaigQuantizeActivations& a, const unsigned short* x, bool aligned, const Use& use) {
    float v[8];
    if (a.rotation_block) {  // all lanes of a warp take part: they rotate kRotated channels at a time
        const int first = static_cast<int>(threadIdx.x) / 32 * kRotated, lane = threadIdx.x % 32;
        for (int k = first; k < a.in_features; k += kQuantizeThreads / 32 * kRotated) {
            load_rotated(T(), a, x, k + 8 * lane, v);
            if (k + 8 * lane < a.in_features) {
                use(k + 8 * lane, v);
            }
        }
    } else {
        for (int k = 8 * threadIdx.x; k < a.in_features; k += 8 * kQuantizeThreads) {
            load_eight(T(), x + k, a.in_features - k < 8 ? a.in_features - k : 8, aligned, v);
            use(k, v);
        }
    }
}

template <class T>
QAIG_DEVICE void quantize_activations(const QaigQuantizeActivations& a) {
    QAIG_SHARED_ARRAY(unsigned, of_warps, kQuantizeThreads / 32);
    const Shape s = {0, a.in_features, a.group_size, 0};
    const int group_size = a.group_size, groups = s.groups(), group_slots = s.units_per_group() * kUnitSlots;
    const long long index = blockIdx.x;
    const auto* x = static_cast<const unsigned short*>(a.x) + index * a.in_features;
    const bool aligned = reinterpret_cast<unsigned long long>(a.x) % 16 == 0 && a.in_features % 8 == 0;
    const bool whole_eights = group_size % 8 == 0 || groups == 1;  // eight channels lie in eight slots
    Row<T> row = {static_cast<unsigned short*>(a.out) + index * a.slots, false, false, 1};
    if (a.token_scale) {
        unsigned largest = 0;
        for_channels<T>(a, x, aligned, [&](int, float (&v)[8]) { largest = update_absmax(largest, v); });
        largest = block_max(largest, of_warps);
        row.rounded = largest <= bits_of(kLargest);
        row.bytes = row.rounded && a.bytes;
        float token_scale = !a.bytes ? 1.0f : largest > kInfinity ? float_of(largest) : kNotQuantized;
        if (row.rounded) {
            const float most = float_of(largest);
            row.scale = divide(most > kSmallest ? most : kSmallest, 127.0f);
            token_scale = a.bytes ? row.scale : multiply(row.scale, kIntegerDivisor);
        }
        if (threadIdx.x == 0) {
            store_global(a.token_scale + index, token_scale);
        }
    }
    // Slots, eight at a time. With a rotation only the padding: the channels follow below.
    for (int slot = 8 * threadIdx.x; slot < a.slots; slot += 8 * kQuantizeThreads) {
        const int group = slot / group_slots, in_group = slot - group * group_slots;
        const int rest = group < groups ? group_size - in_group : 0, count = rest < 0 ? 0 : rest < 8 ? rest : 8;
        if (a.rotation_block) {
            for (int i = count; i < 8; i++) {
                row.store(slot + i, 0);
            }
        } else {
            float v[8];
            const bool in_eights = aligned && whole_eights;
            load_eight(T(), x + static_cast<long long>(group) * group_size + in_group, count, in_eights, v);
            row.round(v);
            row.store_eight(slot, v);
        }
    }
    if (a.rotation_block) {
        for_channels<T>(a, x, aligned, [&](int k, float (&v)[8]) {
            row.round(v);
            if (whole_eights) {
                const int group = k / group_size;
                row.store_eight(group * group_slots + k - group * group_size, v);
                return;
            }
#pragma unroll
            for (int i = 0; i < 8; i++) {  // a rotation's blocks are multiples of eight, so all eight exist
                const int group = (k + i) / group_size;
                row.store(group * group_slots + k + i - group * group_size, v[i]);
            }
        });
    }
}

}  // namespace
}  // namespace cuda
}  // namespace qaig

extern "C" __global__ void __launch_bounds__(256)
    qaig_quantize_activations_f16(QAIG_ARGUMENT QaigQuantizeActivations a) {
    qaig::cuda::quantize_activations<qaig::cuda::F16>(a);
}

extern "C" __global__ void __launch_bounds__(256)
    qaig_quantize_activations_bf16(QAIG_ARGUMENT QaigQuantizeActivations a) {
    qaig::cuda::quantize_activations<qaig::cuda::BF16>(a);
}
