// Unpacks codes to four signed bytes a register, for products of integers.
//
// A mask extracts four codes of one row at once. One subtraction takes the zero points off all four bytes. A bit set
// above each code keeps borrows from the neighbouring byte:
//
//   ((code | 128) - zero) ^ 128 = code - zero,   of 7 bits and a sign if codes have at most 4 bits
//
// Codes of 8 bits have no room for that bit. They become code - 128, and sums of x correct the rest.
#pragma once

#include "cuda/device/intrinsics.cuh"
#include "cuda/layout.h"

namespace qaig {
namespace cuda {

constexpr unsigned kSigns = 0x80808080u;

QAIG_HOST_DEVICE unsigned four_times(unsigned byte) { return byte * 0x01010101u; }

// Byte `index` of `bytes` four times.
QAIG_DEVICE unsigned repeat_byte(unsigned bytes, unsigned index) { return permute_bytes(bytes, 0, index * 0x1111u); }

// Puts the 3-bit codes of pair `p` at bits `at` and at + 16 of `added`, which has zeros there.
QAIG_DEVICE unsigned add_three_bits(const unsigned* words, int p, int at, unsigned added) {
    if (p == 15) {
#pragma unroll
        for (int i = 0; i < 3; i++) {
            added = and_or(words[i] >> (15 - at - i), 0x00010001u << (at + i), added);
        }
        return added;
    }
    const int bit = pair_bit(3, p);
    const unsigned word = words[pair_word(3, p)];
    return and_or(bit > at ? word >> (bit - at) : word << (at - bit), 0x00070007u << at, added);
}

// Unpacks registers a0 to a3 of a row tile's product with one unit: bytes code - zero, or code - 128 for 8 bits.
// Register i has row g + 8 (i % 2) and slots 8 t + 4 (i / 2) + 0, 2, 1 and 3. `zeros` has each row's zero point four
// times.
template <int bits>
QAIG_DEVICE void unpack_bytes(unsigned (&a)[4], const unsigned* words, int unit, const unsigned (&zeros)[2]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int p = 8 * unit + 4 * (i / 2) + i % 2;  // pairs p and p + 2
        if constexpr (bits == 8) {
            a[i] = permute_bytes(words[p / 2], words[p / 2 + 1], i % 2 ? 0x7351u : 0x6240u) ^ kSigns;
            continue;
        } else if constexpr (bits == 4) {
            a[i] = and_or(words[p / 4] >> 4 * (i % 2), four_times(15), kSigns);
        } else if constexpr (bits == 3) {
            a[i] = add_three_bits(words, p, 0, add_three_bits(words, p + 2, 8, kSigns));
        } else {  // slots 0, 4, 1, 5 or 2, 6, 3, 7
            a[i] = and_or(words[unit] >> (2 * (i % 2) + 4 * (i / 2)), four_times(3), kSigns);
        }
        a[i] = (a[i] - zeros[i % 2]) ^ kSigns;
    }
    if constexpr (bits == 2) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const unsigned first = a[h], second = a[2 + h];
            a[h] = permute_bytes(first, second, 0x6240u), a[2 + h] = permute_bytes(first, second, 0x7351u);
        }
    }
}

}  // namespace cuda
}  // namespace qaig
