// Dequantizes columns of a tile into bfloat16 with AVX-512. Codes are transposed as bytes, four in a word.
#include <algorithm>
#include <limits>

#include "cpu/avx512/common.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"

#if defined(__x86_64__)

QAIG_AVX512_BEGIN

namespace qaig::avx512 {
namespace {

// Transposes 8 quads of a unit, whose lane r is row r, to the 32 codes of each row in order. For r below 4, register r
// then holds rows r and 4 + r. Register 4 + r holds rows 8 + r and 12 + r.
QAIG_INLINE void transpose(__m512i (&v)[kUnitQuads]) {
    __m512i pairs[kUnitQuads], quads[kUnitQuads];
    unroll<kUnitQuads / 2>([&](auto i) QAIG_LAMBDA_INLINE {
        pairs[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    });
    // Register 4 h + r: quads 4 h to 4 h + 3 of rows r, 4 + r, 8 + r and 12 + r.
    unroll<kUnitQuads / 2>([&](auto i) QAIG_LAMBDA_INLINE {
        constexpr int from = i / 2 * 4 + i % 2, to = i / 2 * 4 + i % 2 * 2;
        quads[to] = _mm512_unpacklo_epi64(pairs[from], pairs[from + 2]);
        quads[to + 1] = _mm512_unpackhi_epi64(pairs[from], pairs[from + 2]);
    });
    // Slots 1 and 2 of a quad lie in bytes 2 and 1.
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
    unroll<4>([&](auto r) QAIG_LAMBDA_INLINE {
        const __m512i low = quads[r], high = quads[r + 4];
        const __m512i first = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high);
        const __m512i last = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high);
        v[r] = _mm512_shuffle_epi8(first, order);
        v[r + 4] = _mm512_shuffle_epi8(last, order);
    });
}

QAIG_INLINE __m512 values_of(__m512i codes, int32_t zero, float scale) {
    const __m512i centred = _mm512_sub_epi32(codes, _mm512_set1_epi32(zero));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(centred), _mm512_set1_ps(scale));
}

// The bits of values that are not NaN. Their high halves are rounded to bfloat16.
QAIG_INLINE __m512i rounded_half(__m512 values) {
    const __m512i bits = _mm512_castps_si512(values);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
}

// The high halves of the words of `low`, then of `high`.
QAIG_INLINE __m512i high_halves(__m512i low, __m512i high) {
    const __m512i pairs = _mm512_setr_epi32(0x00030001, 0x00070005, 0x000b0009, 0x000f000d, 0x00130011, 0x00170015,
                                            0x001b0019, 0x001f001d, 0x00230021, 0x00270025, 0x002b0029, 0x002f002d,
                                            0x00330031, 0x00370035, 0x003b0039, 0x003f003d);
    return _mm512_permutex2var_epi16(low, pairs, high);
}

// Rounds `low`, then `high`, by one instruction of AVX512_BF16. It flushes denormals, and keeps other bits of a NaN than
// `to_bf16`. It is written in assembly, so that the compiler adds no other instruction of that set.
QAIG_INLINE __m512i rounded_by_instruction(__m512 low, __m512 high) {
    __m512i rounded;
    __asm__("vcvtne2ps2bf16 %2, %1, %0" : "=v"(rounded) : "v"(high), "v"(low));
    return rounded;
}

// How values of a group are rounded: always to the same bits.
enum class Rounding { with_nan, as_integers, by_instruction };

QAIG_INLINE Rounding rounding_for(__m512 scale) {
    const __m512 size = _mm512_abs_ps(scale), zero = _mm512_setzero_ps();
    // Values are NaN only if a scale is not finite: 0 times infinity is NaN.
    if (_mm512_cmp_ps_mask(_mm512_sub_ps(scale, scale), zero, _CMP_NEQ_UQ)) {
        return Rounding::with_nan;
    }
    // A value that is not 0 is at least as large as its scale.
    const __mmask16 is_small = _mm512_cmp_ps_mask(size, _mm512_set1_ps(std::numeric_limits<float>::min()), _CMP_LT_OQ);
    const __mmask16 may_be_denormal = _mm512_mask_cmp_ps_mask(is_small, size, zero, _CMP_NEQ_OQ);
    return may_be_denormal || !has_avx512_bf16() ? Rounding::as_integers : Rounding::by_instruction;
}

// Dequantizes codes of a group. Up to 4 bits, a table holds the values of all codes.
template <int B>
class Group {
public:
    QAIG_INLINE Group(const Weight& w, const Tile& tile, int64_t g) {
        const __m512 scale = load_scale(tile.scale, w.scale_type, g);
        _mm512_store_ps(scale_, scale);
        rounding_ = rounding_for(scale);
        _mm512_store_si512(zero_, load_zero(tile.zero, w.shape.bits, g));
        if constexpr (B <= 4) {
            const __m512i codes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            for (int r = 0; r < kTileRows; r++) {
                _mm256_store_si256(reinterpret_cast<__m256i*>(table_[r]),
                                   to_bf16(values_of(codes, zero_[r], scale_[r])));
            }
        }
    }

    // The values of 32 codes of row r.
    QAIG_INLINE __m512i values(int r, __m256i codes) const {
        if constexpr (B <= 4) {
            const __m256i table = _mm256_load_si256(reinterpret_cast<const __m256i*>(table_[r]));
            return _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(codes), _mm512_castsi256_si512(table));
        }
        const __m512i low_codes = _mm512_cvtepu8_epi32(_mm256_castsi256_si128(codes));
        const __m512i high_codes = _mm512_cvtepu8_epi32(_mm256_extracti128_si256(codes, 1));
        const __m512 low = values_of(low_codes, zero_[r], scale_[r]), high = values_of(high_codes, zero_[r], scale_[r]);
        switch (rounding_) {
            case Rounding::by_instruction: return rounded_by_instruction(low, high);
            case Rounding::as_integers: return high_halves(rounded_half(low), rounded_half(high));
            default: return _mm512_inserti64x4(_mm512_castsi256_si512(to_bf16(low)), to_bf16(high), 1);
        }
    }

private:
    alignas(64) float scale_[kTileRows];
    alignas(64) int32_t zero_[kTileRows];
    alignas(64) uint16_t table_[kTileRows][16];
    Rounding rounding_;
};

// Stores slots [start, stop) of 32 values.
QAIG_INLINE void store_slots(__m512i values, int64_t start, int64_t stop, uint16_t* out) {
    if (stop - start == kUnitSlots) {
        _mm512_storeu_si512(out, values);
        return;
    }
    alignas(64) uint16_t part[kUnitSlots];
    _mm512_store_si512(part, values);
    std::copy(part + start, part + stop, out);
}

template <int B>
void dequantize(const Weight& w, const Tile& tile, int64_t rows, int64_t start, int64_t stop, uint16_t* out) {
    const Shape& s = w.shape;
    for (int64_t g = start / s.group_size; g * s.group_size < stop; g++) {
        const Group<B> group(w, tile, g);
        for (int64_t u = 0; u < s.units_per_group(); u++) {
            const int64_t k = u * kUnitSlots, column = g * s.group_size + k;
            const int64_t from = std::max<int64_t>(0, start - column);
            const int64_t to = std::min<int64_t>({kUnitSlots, s.group_size - k, stop - column});
            if (from >= to) {
                continue;
            }
            const uint32_t* words = tile.words + (g * s.units_per_group() + u) * B * kTileRows;
            Unit<B> unit;
            unit.load(words);
            // These columns of the next tile are too far away for the hardware to prefetch.
            for (int i = 0; i < B; i++) {
                _mm_prefetch(reinterpret_cast<const char*>(words + s.words_per_tile() + i * kTileRows), _MM_HINT_T0);
            }
            __m512i v[kUnitQuads];
            unroll<kUnitQuads>([&](auto q) QAIG_LAMBDA_INLINE { v[q] = unit.template quad<q>(); });
            transpose(v);
            uint16_t* at = out + column + from - start;
            unroll<kTileRows>([&](auto r) QAIG_LAMBDA_INLINE {
                if (r < rows) {
                    const __m256i codes = _mm512_extracti64x4_epi64(v[r % 4 + r / 8 * 4], r / 4 % 2);
                    store_slots(group.values(r, codes), from, to, at + r * (stop - start));
                }
            });
        }
    }
}

}  // namespace

void dequantize_columns(const Weight& w, const Tile& tile, int64_t rows, int64_t start, int64_t stop, uint16_t* out) {
    switch (kernel_bits(w.shape.bits)) {
        case 2: return dequantize<2>(w, tile, rows, start, stop, out);
        case 3: return dequantize<3>(w, tile, rows, start, stop, out);
        case 4: return dequantize<4>(w, tile, rows, start, stop, out);
        default: return dequantize<8>(w, tile, rows, start, stop, out);
    }
}

}  // namespace qaig::avx512

QAIG_TARGET_END

#endif
