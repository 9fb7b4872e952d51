// Quantizes x with AVX2, to pairs of 16-bit integers or quads of bytes.
#include "cpu/avx2/common.h"
#include "cpu/quantize.h"
#include "cpu/hadamard.h"

#if defined(__x86_64__)

QAIG_AVX2_BEGIN

namespace qaig::avx2 {
namespace {

constexpr int kVectors = kSegmentUnits * kUnitSlots / 8;  // float32 vectors in a segment

// Removes the low byte, which is signed: (q - low byte) / 256.
QAIG_INLINE __m256i without_low_byte(__m256i q) {
    return _mm256_srai_epi32(_mm256_add_epi32(q, _mm256_set1_epi32(128)), 8);
}

QAIG_INLINE __m256i magnitude(__m256 x) {
    return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}

QAIG_INLINE int32_t total(__m256i x) {
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), x);
    int32_t sum = 0;
    for (const int32_t lane : lanes) {
        sum += lane;
    }
    return sum;
}

// Stores the low bytes of 32 integers (two quads a vector), in the byte order of a unit.
QAIG_INLINE void store_quads(const __m256i (&q)[4], uint32_t* out) {
    const __m256i order = _mm256_setr_epi8(0, 8, 4, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                           0, 8, 4, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    for (int i = 0; i < 4; i++) {
        const __m256i bytes = _mm256_shuffle_epi8(q[i], order);
        out[2 * i] = static_cast<uint32_t>(_mm256_extract_epi32(bytes, 0));
        out[2 * i + 1] = static_cast<uint32_t>(_mm256_extract_epi32(bytes, 4));
    }
}

// Stores the low halves of 32 integers: 16 pairs.
QAIG_INLINE void store_pairs(const __m256i (&q)[4], uint32_t* out) {
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                           0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1);
    for (int i = 0; i < 4; i++) {
        const __m256i pairs = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(q[i], order), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out) + i, _mm256_castsi256_si128(pairs));
    }
}

// Butterflies of lanes at distances 1, 2 and 4.
QAIG_INLINE __m256 butterflies(__m256 x) {
    const auto step = [](__m256 own, __m256 other, __m256 minus)
                          QAIG_LAMBDA_INLINE { return _mm256_add_ps(other, _mm256_xor_ps(own, minus)); };
    x = step(x, _mm256_permute_ps(x, 0xb1), _mm256_setr_ps(0.f, -0.f, 0.f, -0.f, 0.f, -0.f, 0.f, -0.f));
    x = step(x, _mm256_permute_ps(x, 0x4e), _mm256_setr_ps(0.f, 0.f, -0.f, -0.f, 0.f, 0.f, -0.f, -0.f));
    return step(x, _mm256_permute2f128_ps(x, x, 1), _mm256_setr_ps(0.f, 0.f, 0.f, 0.f, -0.f, -0.f, -0.f, -0.f));
}

// Rotates the block that begins at element `at` of x, which is channel k.
QAIG_INLINE void rotate_block(const Linear& l, int64_t at, int64_t k, const uint64_t* signs, float* out) {
    const int64_t block = l.rotation.block;
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    for (int64_t i = 0; i < block; i += 8) {
        const __m256i bits = _mm256_set1_epi32(static_cast<int>(signs_at(signs, k + i, 8)));
        const __m256i flipped = _mm256_cmpeq_epi32(_mm256_and_si256(bits, lane), lane);
        const __m256 minus = _mm256_castsi256_ps(_mm256_slli_epi32(flipped, 31));
        _mm256_storeu_ps(out + i, butterflies(_mm256_xor_ps(load_eight(l.x, l.type, at + i), minus)));
    }
    for (int64_t distance = 8; distance < block; distance *= 2) {
        const __m256 scale = _mm256_set1_ps(2 * distance == block ? rotation_scale(block) : 1.f);
        for (int64_t i = 0; i < block; i += 2 * distance) {
            for (int64_t j = i; j < i + distance; j += 8) {
                const __m256 a = _mm256_loadu_ps(out + j), b = _mm256_loadu_ps(out + j + distance);
                _mm256_storeu_ps(out + j, _mm256_mul_ps(_mm256_add_ps(a, b), scale));
                _mm256_storeu_ps(out + j + distance, _mm256_mul_ps(_mm256_sub_ps(a, b), scale));
            }
        }
    }
}

struct Values : WordByWord {
    __m256 x[kVectors];
    int64_t units;

    Values(const Linear& l, int64_t row, const Segment& s) : units(s.units) {
        alignas(32) float padded[kSegmentUnits * kUnitSlots];
        const int64_t at = row * l.weight.shape.in_features + s.channel;
        const bool whole = s.count == kSegmentUnits * kUnitSlots;
        if (!whole) {
            std::fill_n(padded, kSegmentUnits * kUnitSlots, 0.f);
            load_floats(l.x, l.type, at, s.count, padded);
        }
        for (int i = 0; i < kVectors; i++) {
            x[i] = whole ? load_eight(l.x, l.type, at + 8 * i) : _mm256_load_ps(padded + 8 * i);
        }
    }

    static void rotate(const Linear& l, int64_t row, const uint64_t* signs, float* out) {
        const int64_t K = l.weight.shape.in_features;
        for (int64_t k = 0; k < K; k += l.rotation.block) {
            rotate_block(l, row * K + k, k, signs, out + k);
        }
    }

    uint32_t absmax_bits() const {
        __m256i most = _mm256_setzero_si256();
        for (int i = 0; i < kVectors; i++) {
            most = _mm256_max_epu32(most, magnitude(x[i]));
        }
        alignas(32) uint32_t lanes[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), most);
        return *std::max_element(lanes, lanes + 8);
    }

    bool has_outliers(uint32_t largest) const {
        const __m256i bound = _mm256_set1_epi32(static_cast<int>(largest < 7u << 23 ? 0 : largest - (7u << 23)));
        __m256i small = _mm256_setzero_si256(), zeros = small;  // counted by subtracting -1
        for (int i = 0; i < kVectors; i++) {
            const __m256i bits = magnitude(x[i]);
            zeros = _mm256_sub_epi32(zeros, _mm256_cmpeq_epi32(bits, _mm256_setzero_si256()));
            small = _mm256_sub_epi32(small, _mm256_cmpgt_epi32(bound, bits));
        }
        const int32_t zero_count = total(zeros), nonzero = 8 * kVectors - zero_count;
        return largest != 0 && 2 * (total(small) - (largest < 7u << 23 ? 0 : zero_count)) > nonzero;
    }

    TermSums quantize_to(uint32_t* out, bool quads, int planes, float scale) const {
        const int per_unit = quads ? kUnitQuads : kUnitPairs;
        const int64_t plane = units * per_unit;
        __m256i sum = _mm256_setzero_si256(), low_sum = sum;
        for (int64_t u = 0; u < units; u++, out += per_unit) {
            __m256i q[4], low[4], high[4];
            for (int i = 0; i < 4; i++) {
                q[i] = _mm256_cvtps_epi32(_mm256_div_ps(x[4 * u + i], _mm256_set1_ps(scale)));
                if (planes == 3) {
                    low[i] = _mm256_sub_epi32(q[i], _mm256_slli_epi32(without_low_byte(q[i]), 8));
                    low_sum = _mm256_add_epi32(low_sum, low[i]);
                    q[i] = without_low_byte(q[i]);
                }
                sum = _mm256_add_epi32(sum, q[i]);
                high[i] = without_low_byte(q[i]);
            }
            if (!quads) {
                store_pairs(q, out);
                if (planes == 3) {
                    store_pairs(low, out + plane);
                }
            } else if (planes == 1) {
                store_quads(q, out);
            } else {
                store_quads(high, out);
                store_quads(q, out + plane);
                if (planes == 3) {
                    store_quads(low, out + 2 * plane);
                }
            }
        }
        return {total(sum), total(low_sum)};
    }
};

}  // namespace

void quantize(const Linear& l, Activations& a, int64_t begin, int64_t end) { quantize_with<Values>(l, a, begin, end); }

void quantize_by_rows(const Linear& l, Activations& a, int64_t begin, int64_t end) {
    quantize_with<RowByRow<Values>>(l, a, begin, end);
}

}  // namespace qaig::avx2

QAIG_TARGET_END

#endif
