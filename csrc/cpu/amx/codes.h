// Codes out of words, and the weights in them as tiles read them.
//
// A row of a tile is 16 output channels of four bytes each: a quad of bytes, or a pair of bfloat16. Rows of x lie the
// same way, channel after channel, so a lane of a quad of codes is already where a tile wants it.
#pragma once

#include "cpu/activations.h"
#include "cpu/amx/lanes.h"
#include "cpu/amx/tiles.h"

#if defined(__x86_64__)

QAIG_AMX_BEGIN

namespace qaig::amx {

constexpr int64_t kAheadWords = 2048;  // of the weight that are asked for in advance, into the next tiles too
constexpr int kTileBytes = kMaxTileRows * kRowBytes;
constexpr int kPanelTiles = 2;
constexpr int kPanelRows = kPanelTiles * kTileRows;

// Quad Q of a unit as unsigned bytes.
template <int B, int Q>
QAIG_INLINE Ints quad(const Ints (&words)[B]) {
    if constexpr (B == 3 && Q >= 6) {  // spread over three words
        const Ints low = halves_down<6>(words[Q - 6]), high = halves_down<Q - 2>(words[2]);
        return bits_of(choose(low, high, all(0x03030303)), all(0x07070707));
    } else if constexpr (B == 8) {
        return words[Q];
    } else {
        return bits_of(halves_down<quad_bit(B, Q)>(words[quad_word(B, Q)]), all(((1 << B) - 1) * 0x01010101));
    }
}

QAIG_INLINE Ints in_every_byte(Ints v) { return times(v, all(0x01010101)); }

// Codes less their zero points as signed bytes, for integer planes of x. Differences of 8-bit codes can need nine bits:
// those lose 128 here, and sums lose the rest.
struct Bytes {
    static constexpr int kStepUnits = 2;  // a row of a tile is 64 channels of x

    Ints taken, left;  // of the zero points: in each byte, and in each sum

    QAIG_INLINE Bytes(Ints zero, Floats /* scale: of sums */, int bits)
        : taken(in_every_byte(bits == 8 ? all(128) : zero)), left(bits == 8 ? minus(zero, all(128)) : all(0)) {}

    template <int B, int Q>
    QAIG_INLINE void put(Ints codes, char* unit) const {
        write(unit + Q * kRowBytes, minus_bytes(codes, taken));
    }
};

// Weights in bfloat16, for x in bfloat16.
struct Halves {
    static constexpr int kStepUnits = 1;

    Ints taken;
    Floats scale;

    QAIG_INLINE Halves(Ints zero, Floats scale, int bits)
        : taken(kernel_bits(bits) == 8 ? zero : in_every_byte(zero)), scale(scale) {}

    template <int B, int Q>
    QAIG_INLINE void put(Ints codes, char* unit) const {
        const auto put_pair = [&](int row, Floats first, Floats second) QAIG_LAMBDA_INLINE {
            write(unit + row * kRowBytes, to_bf16_pairs(times(first, scale), times(second, scale)));
        };
        if constexpr (B == 8) {
            const Ints odd = halves_down<8>(codes), byte = all(255);
            const auto difference = [&](Ints code)
                                        QAIG_LAMBDA_INLINE { return floats(minus(bits_of(code, byte), taken)); };
            put_pair(2 * Q, difference(codes), difference(upper(codes)));
            put_pair(2 * Q + 1, difference(odd), difference(upper(odd)));
        } else {
            const Ints differences = minus_bytes(codes, taken);
            const Ints first = small_to_bf16(differences), second = small_to_bf16(halves_down<8>(differences));
            put_pair(2 * Q, lower_bf16(first), upper_bf16(first));
            put_pair(2 * Q + 1, lower_bf16(second), upper_bf16(second));
        }
    }
};

// Unpacks `units` units of tile `c` of a panel. `out` is [steps][2 tiles][16 rows].
template <class Form, int B>
void unpack(const uint32_t* words, int64_t units, const Form& form, char* out) {
    constexpr int kUnitBytes = kTileBytes / Form::kStepUnits;
    for (int64_t u = 0; u < units; u++, words += B * kTileRows) {
        Ints w[B];
        for (int i = 0; i < B; i++) {
            ask_for(words + i * kTileRows + kAheadWords);
        }
        unroll<B>([&](auto i) QAIG_LAMBDA_INLINE { w[i] = read_words(words + i * kTileRows); });
        char* unit = out + u / Form::kStepUnits * kPanelTiles * kTileBytes + u % Form::kStepUnits * kUnitBytes;
        unroll<kUnitQuads>([&](auto q) QAIG_LAMBDA_INLINE { form.template put<B, q>(quad<B, q>(w), unit); });
    }
    if (units % Form::kStepUnits) {  // what a step lacks is zeros, whatever x is read
        std::fill_n(out + units / Form::kStepUnits * kPanelTiles * kTileBytes + kUnitBytes, kUnitBytes, char{0});
    }
}

template <class Form>
void unpack(int bits, const uint32_t* words, int64_t units, const Form& form, char* out) {
    switch (kernel_bits(bits)) {
        case 2: return unpack<Form, 2>(words, units, form, out);
        case 3: return unpack<Form, 3>(words, units, form, out);
        case 4: return unpack<Form, 4>(words, units, form, out);
        default: return unpack<Form, 8>(words, units, form, out);
    }
}

}  // namespace qaig::amx

QAIG_TARGET_END

#endif
