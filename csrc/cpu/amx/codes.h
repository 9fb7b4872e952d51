// Unpacks codes into weights that tiles read: signed bytes or bfloat16.
//
// A row of a tile is 16 output channels of four bytes each: a quad of bytes, or a pair of bfloat16. A word of the CPU
// layout has its 16 channels in the same order, so quads need no transposition.
#pragma once

#include "cpu/activations.h"
#include "cpu/amx/lanes.h"
#include "cpu/amx/tiles.h"

#if defined(__x86_64__)

QAIG_AMX_BEGIN

namespace qaig::amx {

constexpr int64_t kPrefetchWords = 2048;  // how far ahead weights are prefetched, across tiles
constexpr int kTileBytes = kMaxTileRows * kRowBytes;
constexpr int kPanelTiles = 2;
constexpr int kPanelRows = kPanelTiles * kTileRows;

// Quad Q of a unit as unsigned bytes.
template <int B, int Q>
QAIG_INLINE Ints quad(const Ints (&words)[B]) {
    if constexpr (B == 3 && Q >= 6) {  // spread over three words
        const Ints low = shift_right_halves<6>(words[Q - 6]), high = shift_right_halves<Q - 2>(words[2]);
        return bit_and(select_bits(low, high, broadcast(0x03030303)), broadcast(0x07070707));
    } else if constexpr (B == 8) {
        return words[Q];
    } else {
        return bit_and(shift_right_halves<quad_bit(B, Q)>(words[quad_word(B, Q)]),
                       broadcast(((1 << B) - 1) * 0x01010101));
    }
}

QAIG_INLINE Ints in_every_byte(Ints v) { return times(v, broadcast(0x01010101)); }

// Codes minus zero points as signed bytes, for byte planes of x. Differences of 8-bit codes can need nine bits. So
// bytes are codes minus 128, and the rest of the zero point is subtracted from sums.
struct Int8Weights {
    static constexpr int kStepUnits = 2;  // a row of a tile is 64 channels of x

    Ints byte_zero, sum_zero;  // what is subtracted from each byte, and from each sum (times the sum of x)

    QAIG_INLINE Int8Weights(Ints zero, Floats /* the scale multiplies sums */, int bits)
        : byte_zero(in_every_byte(bits == 8 ? broadcast(128) : zero)),
          sum_zero(bits == 8 ? minus(zero, broadcast(128)) : broadcast(0)) {}

    template <int B, int Q>
    QAIG_INLINE void store_quad(Ints codes, char* unit) const {
        write(unit + Q * kRowBytes, subtract_bytes(codes, byte_zero));
    }
};

// Weights in bfloat16, for x in bfloat16.
struct Bf16Weights {
    static constexpr int kStepUnits = 1;

    Ints zero;
    Floats scale;

    QAIG_INLINE Bf16Weights(Ints zero, Floats scale, int bits)
        : zero(kernel_bits(bits) == 8 ? zero : in_every_byte(zero)), scale(scale) {}

    template <int B, int Q>
    QAIG_INLINE void store_quad(Ints codes, char* unit) const {
        const auto store_pair = [&](int row, Floats first, Floats second) QAIG_LAMBDA_INLINE {
            write(unit + row * kRowBytes, to_bf16_pairs(times(first, scale), times(second, scale)));
        };
        if constexpr (B == 8) {
            const Ints odd = shift_right_halves<8>(codes), byte = broadcast(255);
            const auto difference = [&](Ints code)
                                        QAIG_LAMBDA_INLINE { return to_floats(minus(bit_and(code, byte), zero)); };
            store_pair(2 * Q, difference(codes), difference(upper_half(codes)));
            store_pair(2 * Q + 1, difference(odd), difference(upper_half(odd)));
        } else {
            const Ints differences = subtract_bytes(codes, zero);
            const Ints first = small_to_bf16(differences), second = small_to_bf16(shift_right_halves<8>(differences));
            store_pair(2 * Q, lower_bf16(first), upper_bf16(first));
            store_pair(2 * Q + 1, lower_bf16(second), upper_bf16(second));
        }
    }
};

// Unpacks `units` units of tile `c` of a panel. `out` is [steps][2 tiles][16 rows].
template <class Weights, int B>
void unpack(const uint32_t* words, int64_t units, const Weights& format, char* out) {
    constexpr int kUnitBytes = kTileBytes / Weights::kStepUnits;
    for (int64_t u = 0; u < units; u++, words += B * kTileRows) {
        Ints w[B];
        for (int i = 0; i < B; i++) {
            prefetch(words + i * kTileRows + kPrefetchWords);
        }
        unroll<B>([&](auto i) QAIG_LAMBDA_INLINE { w[i] = read_words(words + i * kTileRows); });
        char* unit = out + u / Weights::kStepUnits * kPanelTiles * kTileBytes + u % Weights::kStepUnits * kUnitBytes;
        unroll<kUnitQuads>([&](auto q) QAIG_LAMBDA_INLINE { format.template store_quad<B, q>(quad<B, q>(w), unit); });
    }
    if (units % Weights::kStepUnits) {  // the rest of the last step is zeros, so its x does not count
        std::fill_n(out + units / Weights::kStepUnits * kPanelTiles * kTileBytes + kUnitBytes, kUnitBytes, char{0});
    }
}

template <class Weights>
void unpack(int bits, const uint32_t* words, int64_t units, const Weights& format, char* out) {
    switch (kernel_bits(bits)) {
        case 2: return unpack<Weights, 2>(words, units, format, out);
        case 3: return unpack<Weights, 3>(words, units, format, out);
        case 4: return unpack<Weights, 4>(words, units, format, out);
        default: return unpack<Weights, 8>(words, units, format, out);
    }
}

}  // namespace qaig::amx

QAIG_TARGET_END

#endif
