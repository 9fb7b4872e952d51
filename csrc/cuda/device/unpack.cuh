// Unpacks codes to pairs of 16-bit floats `code - zero`, exactly.
//
// A pair's two codes lie at the same bit of the two halves of a word. They are masked, and get the exponent of a power
// of two (the "magic"). If the code's field lies within the mantissa, that yields two floats magic + code * 2^bit at
// once, without a conversion. One fused multiply-add then makes both exactly code - zero:
//
//   (magic + code * 2^bit) * 2^-bit - (magic * 2^-bit + zero)
//
// Fields above the mantissa are shifted down first, several of them by one shift. The scale multiplies sums in float32
// instead: its product with an integer would be rounded.
#pragma once

#include "cuda/device/intrinsics.cuh"
#include "cuda/layout.h"

namespace qaig {
namespace cuda {

// Fields of `bits` bits that the mantissa holds. For 2 bits and float16 it could hold 5, but 4 need fewer constants and
// as many shifts.
template <class T>
QAIG_HOST_DEVICE int fields(int bits) {
    return bits == 2 && T::kMagicBits == 10 ? 4 : T::kMagicBits / bits;
}

constexpr int kMostFields = 4;

QAIG_HOST_DEVICE unsigned twice(unsigned half) { return half | half << 16; }

// 2^-shift and magic * (1 - 2^-shift) as two equal 16-bit floats.
QAIG_HOST_DEVICE unsigned inverse_power(F16, int shift) { return twice(static_cast<unsigned>(15 - shift) << 10); }
QAIG_HOST_DEVICE unsigned inverse_power(BF16, int shift) { return twice(static_cast<unsigned>(127 - shift) << 7); }
QAIG_HOST_DEVICE unsigned magic_less(F16, int shift) {  // 0, 1024 - 256 = 768, 896, 960, 992, 1008, 1016
    return shift == 0   ? twice(0)
           : shift == 2 ? twice(0x6200)
           : shift == 3 ? twice(0x6300)
           : shift == 4 ? twice(0x6380)
           : shift == 6 ? twice(0x63e0)
                        : twice(0x7fff);
}
QAIG_HOST_DEVICE unsigned magic_less(BF16, int shift) {  // 0, 128 - 32 = 96, 112, 120
    return shift == 0   ? twice(0)
           : shift == 2 ? twice(0x42c0)
           : shift == 3 ? twice(0x42e0)
           : shift == 4 ? twice(0x42f0)
                        : twice(0x7fff);
}
QAIG_HOST_DEVICE unsigned minus_one(F16) { return twice(0xbc00); }
QAIG_HOST_DEVICE unsigned minus_one(BF16) { return twice(0xbf80); }

// What is subtracted in one row: -(magic * 2^-bit + zero) for each field. For 8 bits and bfloat16 it is 2^23 + zero in
// float32, because bfloat16's significand is too short.
template <class T, int bits>
struct ZeroPoint {
    unsigned minus[kMostFields];
    float wide;
};

// `zeros` has the zero points of four rows, one a byte.
template <class T, int bits>
QAIG_DEVICE ZeroPoint<T, bits> zero_point_of(unsigned zeros, unsigned byte) {
    ZeroPoint<T, bits> z;
    if constexpr (bits == 8 && T::kMagicBits == 7) {
        z.wide = float_of(permute_bytes(zeros, 0x4b000000u, 0x7440u | byte));
    } else {
        const unsigned with_magic = permute_bytes(zeros, twice(T::kMagic), 0x5050u | byte | byte << 8);
#pragma unroll
        for (int i = 0; i < fields<T>(bits); i++) {
            z.minus[i] = multiply_add(T(), with_magic, minus_one(T()), magic_less(T(), i * bits));
        }
    }
    return z;
}

// Unpacks pair `p` of a row tile. `p` is a constant once loops are unrolled.
template <class T, int bits>
QAIG_DEVICE unsigned unpack_pair(const unsigned* words, int p, const ZeroPoint<T, bits>& zero) {
    if constexpr (bits == 8) {
        const unsigned word = words[p / 2];
        const unsigned low = p % 2, high = low + 2;
        if constexpr (T::kMagicBits == 7) {
            const float first = float_of(permute_bytes(word, 0x4b000000u, 0x7440u | low)) - zero.wide;
            const float second = float_of(permute_bytes(word, 0x4b000000u, 0x7440u | high)) - zero.wide;
            return permute_bytes(bits_of(first), bits_of(second), 0x7632u);  // integers below 256 fit in the top halves
        } else {
            const unsigned value = permute_bytes(word, twice(T::kMagic), 0x5050u | low | high << 8);
            return multiply_add(T(), value, inverse_power(T(), 0), zero.minus[0]);
        }
    } else if (bits == 3 && p == 15) {
        unsigned value = and_or(words[0] >> 15, twice(1), twice(T::kMagic));
        value = and_or(words[1] >> 14, twice(2), value);
        value = and_or(words[2] >> 13, twice(4), value);
        return multiply_add(T(), value, inverse_power(T(), 0), zero.minus[0]);
    } else {
        const int field = pair_bit(bits, p) / bits, place = field % fields<T>(bits), shift = (field - place) * bits;
        const unsigned word = words[pair_word(bits, p)] >> shift;
        const unsigned value = and_or(word, twice(((1u << bits) - 1) << place * bits), twice(T::kMagic));
        return multiply_add(T(), value, inverse_power(T(), place * bits), zero.minus[place]);
    }
}

// The code of the first (0) or second (1) slot of pair `p`.
template <int bits>
QAIG_DEVICE unsigned unpack_code(const unsigned* words, int p, int second) {
    if (bits == 3 && p == 15) {
        const int at = 15 + 16 * second;
        return (words[0] >> at & 1u) | (words[1] >> at & 1u) << 1 | (words[2] >> at & 1u) << 2;
    }
    return words[pair_word(bits, p)] >> (pair_bit(bits, p) + 16 * second) & ((1u << bits) - 1);
}

}  // namespace cuda
}  // namespace qaig
