// Quantizes x with AVX-512, to quads of bytes.
#include "cpu/avx512/common.h"
#include "cpu/kernels.h"
#include "cpu/quantize.h"
#include "cpu/hadamard.h"

#if defined(__x86_64__)

QAIG_AVX512_BEGIN

namespace qaig::avx512 {
namespace {

constexpr int kVectors = kSegmentUnits * kUnitSlots / 16;  // float32 vectors in a segment

// Low halves of 32 integers, in the byte order of a unit.
QAIG_INLINE __m512i halves(__m512i q0, __m512i q1) {
    alignas(64) static constexpr uint16_t kOrder[32] = {0,  4,  2,  6,  8,  12, 10, 14, 16, 20, 18, 22, 24, 28, 26, 30,
                                                        32, 36, 34, 38, 40, 44, 42, 46, 48, 52, 50, 54, 56, 60, 58, 62};
    return _mm512_permutex2var_epi16(q0, _mm512_load_si512(kOrder), q1);
}

// Stores the low bytes of 32 halves: the quads of a unit.
QAIG_INLINE void store_bytes(__m512i halves, uint32_t* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi16_epi8(halves));
}

// Sums of two neighbours.
QAIG_INLINE __m512i sums(__m512i halves) { return _mm512_madd_epi16(halves, _mm512_set1_epi16(1)); }

// Removes the low byte, which is signed: (q - low byte) / 256.
QAIG_INLINE __m512i without_low_byte(__m512i q) {
    return _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
}

QAIG_INLINE __m512i magnitude(__m512 x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

// Butterflies of lanes at one distance.
template <int Distance>
QAIG_INLINE __m512 butterfly(__m512 x) {
    const __m512 other = Distance == 1   ? _mm512_permute_ps(x, 0xb1)
                         : Distance == 2 ? _mm512_permute_ps(x, 0x4e)
                         : Distance == 4 ? _mm512_shuffle_f32x4(x, x, 0xb1)
                                         : _mm512_shuffle_f32x4(x, x, 0x4e);
    constexpr __mmask16 kUpper = Distance == 1 ? 0xaaaa : Distance == 2 ? 0xcccc : Distance == 4 ? 0xf0f0 : 0xff00;
    return _mm512_mask_sub_ps(_mm512_add_ps(x, other), kUpper, other, x);
}

// Rotates a block of 16 * Count channels, which begins at element `at` of x, channel k.
template <int Count>
QAIG_INLINE void rotate_block(const Linear& l, int64_t at, int64_t k, const uint64_t* signs, float* out) {
    const __m512 minus = _mm512_set1_ps(-0.f), scale = _mm512_set1_ps(rotation_scale(16 * Count));
    __m512 x[Count];
    unroll<Count>([&](auto i) QAIG_LAMBDA_INLINE {
        const auto flipped = static_cast<__mmask16>(signs_at(signs, k + 16 * i, 16));
        __m512 v = load(l.x, l.type, at + 16 * i);
        v = _mm512_mask_xor_ps(v, flipped, v, minus);
        x[i] = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(v))));
    });
    for (int distance = 1; distance < Count; distance *= 2) {
        for (int i = 0; i < Count; i++) {
            if (!(i & distance)) {
                const __m512 a = x[i], b = x[i + distance];
                x[i] = _mm512_add_ps(a, b);
                x[i + distance] = _mm512_sub_ps(a, b);
            }
        }
    }
    for (int i = 0; i < Count; i++) {
        _mm512_storeu_ps(out + 16 * i, _mm512_mul_ps(x[i], scale));
    }
}

template <int Count>
void rotate_row(const Linear& l, int64_t row, const uint64_t* signs, float* out) {
    const int64_t K = l.weight.shape.in_features;
    for (int64_t k = 0; k < K; k += 16 * Count) {
        rotate_block<Count>(l, row * K + k, k, signs, out + k);
    }
}

struct Values {
    __m512 x[kVectors];
    int64_t units;

    Values(const Linear& l, int64_t row, const Segment& s) : units(s.units) {
        for (int i = 0; i < kVectors; i++) {
            x[i] = load(l.x, l.type, row * l.weight.shape.in_features + s.channel + 16 * i, first(s.count - 16 * i));
        }
    }

    static void rotate(const Linear& l, int64_t row, const uint64_t* signs, float* out) {
        switch (l.rotation.block) {
            case 16: return rotate_row<1>(l, row, signs, out);
            case 32: return rotate_row<2>(l, row, signs, out);
            case 64: return rotate_row<4>(l, row, signs, out);
            case 128: return rotate_row<8>(l, row, signs, out);
            default: return rotate_row<16>(l, row, signs, out);
        }
    }

    uint32_t absmax_bits() const {
        __m512i most = _mm512_setzero_si512();
        for (int i = 0; i < kVectors; i++) {
            most = _mm512_max_epu32(most, magnitude(x[i]));
        }
        return _mm512_reduce_max_epu32(most);
    }

    bool has_outliers(uint32_t largest) const {
        if (largest <= 7u << 23) {
            return false;
        }
        const __m512i bound = _mm512_set1_epi32(static_cast<int>(largest - (7u << 23)));
        const __m512i one = _mm512_set1_epi32(1), before = _mm512_sub_epi32(bound, one);
        __m512i more_small = _mm512_setzero_si512();
        for (int i = 0; i < kVectors; i++) {
            const __m512i bits = magnitude(x[i]);
            const __mmask16 small = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(bits, one), before);  // not zeros
            more_small = _mm512_mask_add_epi32(more_small, small, more_small, one);
            more_small = _mm512_mask_sub_epi32(more_small, _mm512_cmpge_epu32_mask(bits, bound), more_small, one);
        }
        return _mm512_reduce_add_epi32(more_small) > 0;
    }

    TermSums quantize_to(uint32_t* out, bool /* pairs: quads is all there is */, int planes, float scale) const {
        const int64_t plane = units * kUnitQuads;
        const __m512 divisor = _mm512_set1_ps(scale), inverse = _mm512_set1_ps(1 / scale);
        const auto rounded = [&](__m512 x) QAIG_LAMBDA_INLINE {
            const __m512 quotient = _mm512_mul_ps(x, inverse);  // exact for a power of two
            if (planes > 1) {
                return _mm512_cvtps_epi32(quotient);
            }
            // One correction gives the correctly rounded quotient (Markstein, IBM J. Res. Dev. 34, 1990), faster than a
            // division.
            const __m512 rest = _mm512_fnmadd_ps(quotient, divisor, x);
            return _mm512_cvtps_epi32(_mm512_fmadd_ps(rest, inverse, quotient));
        };
        __m512i sum = _mm512_setzero_si512(), low_sum = sum;
        for (int64_t u = 0; u < units; u++, out += kUnitQuads) {
            __m512i q0 = rounded(x[2 * u]), q1 = rounded(x[2 * u + 1]);
            if (planes == 3) {
                const __m512i q = halves(q0, q1);
                store_bytes(q, out + 2 * plane);
                low_sum = _mm512_add_epi32(low_sum, sums(_mm512_srai_epi16(_mm512_slli_epi16(q, 8), 8)));
                q0 = without_low_byte(q0);
                q1 = without_low_byte(q1);
            }
            const __m512i q = halves(q0, q1);
            sum = _mm512_add_epi32(sum, sums(q));
            store_bytes(q, planes == 1 ? out : out + plane);
            if (planes > 1) {
                store_bytes(_mm512_srai_epi16(_mm512_add_epi16(q, _mm512_set1_epi16(128)), 8), out);
            }
        }
        return {_mm512_reduce_add_epi32(sum), planes == 3 ? _mm512_reduce_add_epi32(low_sum) : 0};
    }

    static void interleave(const uint32_t (&rows)[kMaxBatchRows][kRowWords], int64_t count, int64_t R, uint32_t* out) {
        const auto stored = static_cast<__mmask8>((1u << R) - 1);
        for (int64_t j = 0; j < count; j += 8) {
            __m256i a[8], b[8];
            unroll<8>([&](auto m) QAIG_LAMBDA_INLINE {
                a[m] = _mm256_load_si256(reinterpret_cast<const __m256i*>(rows[m < R ? m : 0] + j));
            });
            unroll<4>([&](auto i) QAIG_LAMBDA_INLINE {
                b[2 * i] = _mm256_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
                b[2 * i + 1] = _mm256_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
            });
            unroll<4>([&](auto i) QAIG_LAMBDA_INLINE {  // word i of both lanes, of rows 0 to 3 and of rows 4 to 7
                constexpr int half = i / 2;
                a[i] =
                    i % 2 ? _mm256_unpackhi_epi64(b[half], b[2 + half]) : _mm256_unpacklo_epi64(b[half], b[2 + half]);
                a[4 + i] = i % 2 ? _mm256_unpackhi_epi64(b[4 + half], b[6 + half])
                                 : _mm256_unpacklo_epi64(b[4 + half], b[6 + half]);
            });
            unroll<4>([&](auto i) QAIG_LAMBDA_INLINE {
                const __m256i low = _mm256_permute2x128_si256(a[i], a[4 + i], 0x20);
                const __m256i high = _mm256_permute2x128_si256(a[i], a[4 + i], 0x31);
                _mm256_mask_storeu_epi32(out + (j + i) * R, stored, low);
                _mm256_mask_storeu_epi32(out + (j + 4 + i) * R, stored, high);
            });
        }
    }
};

}  // namespace

void quantize(const Linear& l, Activations& a, int64_t begin, int64_t end) { quantize_with<Values>(l, a, begin, end); }

void quantize_by_rows(const Linear& l, Activations& a, int64_t begin, int64_t end) {
    quantize_with<RowByRow<Values>>(l, a, begin, end);
}

}  // namespace qaig::avx512

QAIG_TARGET_END

#endif
