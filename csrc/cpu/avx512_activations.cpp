#include "avx512.h"
#include "activations.h"
#include "kernels.h"
#include "parallel.h"

#if defined(__x86_64__)

QAIG_AVX512_BEGIN

namespace qaig::avx512 {
namespace {

constexpr int kVectors = kSegmentUnits * kUnitSlots / 16;  // float32 vectors in a segment

struct SegmentValues {
    __m512 x[kVectors];

    QAIG_INLINE SegmentValues(const Linear& l, int64_t row, const Segment& s) {
        for (int i = 0; i < kVectors; i++) {
            x[i] = load(l.x, l.type, row * l.weight.shape.in_features + s.channel + 16 * i, first(s.count - 16 * i));
        }
    }

    // Bits of the largest absolute value. As integers, NaN and infinity are larger than any number.
    QAIG_INLINE uint32_t largest() const {
        __m512i most = _mm512_setzero_si512();
        for (int i = 0; i < kVectors; i++) {
            most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_castps_si512(x[i]), _mm512_set1_epi32(0x7fffffff)));
        }
        return _mm512_reduce_max_epu32(most);
    }

    // Whether two planes would leave more than half of the values fewer bits than bfloat16 has.
    QAIG_INLINE bool has_outliers(uint32_t largest) const {
        const __m512i bound = _mm512_set1_epi32(static_cast<int>(largest < 7u << 23 ? 0 : largest - (7u << 23)));
        int small = 0, nonzero = 0;
        for (int i = 0; i < kVectors; i++) {
            const __m512i bits = _mm512_and_si512(_mm512_castps_si512(x[i]), _mm512_set1_epi32(0x7fffffff));
            const __mmask16 used = _mm512_test_epi32_mask(bits, bits);
            nonzero += __builtin_popcount(used);
            small += __builtin_popcount(_mm512_mask_cmplt_epu32_mask(used, bits, bound));
        }
        return 2 * small > nonzero;
    }
};

QAIG_INLINE float from_bits(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}

// Low bytes of 32 integers, in a unit's byte order, to `out` with stride `rows`.
QAIG_INLINE void put_bytes(__m512i q0, __m512i q1, uint32_t* out, int64_t rows) {
    const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    alignas(32) uint32_t quads[kUnitQuads];
    _mm_store_si128(reinterpret_cast<__m128i*>(quads), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(q0), order));
    _mm_store_si128(reinterpret_cast<__m128i*>(quads) + 1, _mm_shuffle_epi8(_mm512_cvtepi32_epi8(q1), order));
    for (int i = 0; i < kUnitQuads; i++) out[i * rows] = quads[i];
}

// Integer without its low byte, which is taken as signed.
QAIG_INLINE __m512i upper(__m512i q) { return _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8); }

// One row of one segment. `scale8` is the row's scale of 8-bit activations.
void put_row(const Activations& a, int planes, int64_t batch, int64_t m, int64_t segment, const Segment& s,
             const SegmentValues* values, float scale8) {
    uint32_t* out = a.words.data() + batch * a.batch_words + s.unit * kUnitQuads * planes * a.batch_rows + m;
    float* scales = a.scales.data() + batch * a.batch_sums + segment * kMaxParts * a.batch_rows + m;
    int32_t* sums = a.sums.data() + batch * a.batch_sums + segment * kMaxParts * a.batch_rows + m;
    float scale = 0;
    if (values) {
        const uint32_t largest = planes == 1 ? 0 : values->largest();
        scale = planes == 1 ? scale8 : from_bits(largest) < kSmallest ? 0 : power_scale(largest, digits(planes));
    }
    const int64_t plane = s.units * kUnitQuads * a.batch_rows;
    __m512i sum = _mm512_setzero_si512(), low_sum = sum;
    for (int64_t u = 0; u < s.units; u++) {
        __m512i q0 = _mm512_setzero_si512(), q1 = q0;
        if (scale != 0) {
            q0 = _mm512_cvtps_epi32(_mm512_div_ps(values->x[2 * u], _mm512_set1_ps(scale)));
            q1 = _mm512_cvtps_epi32(_mm512_div_ps(values->x[2 * u + 1], _mm512_set1_ps(scale)));
        }
        const __m512i both = _mm512_add_epi32(q0, q1);
        if (planes == 3) {
            const __m512i u0 = upper(q0), u1 = upper(q1), upper_both = _mm512_add_epi32(u0, u1);
            low_sum = _mm512_add_epi32(low_sum, _mm512_sub_epi32(both, _mm512_slli_epi32(upper_both, 8)));
            sum = _mm512_add_epi32(sum, upper_both);
            put_bytes(q0, q1, out + 2 * plane, a.batch_rows);
            q0 = u0;
            q1 = u1;
        } else {
            sum = _mm512_add_epi32(sum, both);
        }
        if (planes == 1) {
            put_bytes(q0, q1, out, a.batch_rows);
        } else {
            put_bytes(q0, q1, out + plane, a.batch_rows);
            put_bytes(upper(q0), upper(q1), out, a.batch_rows);
        }
        out += kUnitQuads * a.batch_rows;
    }
    scales[0] = planes == 3 ? 256 * scale : scale;
    sums[0] = _mm512_reduce_add_epi32(sum);
    scales[a.batch_rows] = scale;
    sums[a.batch_rows] = _mm512_reduce_add_epi32(low_sum);
}

void quantize_batch(const Linear& l, Activations& a, int64_t batch) {
    const Shape& shape = l.weight.shape;
    const int64_t row0 = batch * a.batch_rows, rows = std::min(a.batch_rows, l.rows - row0);
    int planes = l.activation_bits == 8 ? 1 : l.type == Scalar::f32 ? 3 : 2;
    Buffer<float> scale8(a.batch_rows);
    for (int64_t m = 0; m < rows; m++) {
        uint32_t largest = 0;
        for (int64_t i = 0; i < shape.segments(); i++) {
            const SegmentValues values(l, row0 + m, segment_at(shape, i));
            const uint32_t most = values.largest();
            largest = std::max(largest, most);
            if (planes == 2 && values.has_outliers(most)) planes = 3;
        }
        a.skipped[row0 + m] = is_skipped(largest, l.activation_bits);
        scale8[m] = std::max(from_bits(largest), 1e-5f) / 127;
    }
    a.planes[batch] = static_cast<uint8_t>(planes);
    for (int64_t i = 0; i < shape.segments(); i++) {
        const Segment s = segment_at(shape, i);
        for (int64_t m = 0; m < a.batch_rows; m++) {
            if (m < rows && !a.skipped[row0 + m]) {
                const SegmentValues values(l, row0 + m, s);
                put_row(a, planes, batch, m, i, s, &values, scale8[m]);
            } else {
                put_row(a, planes, batch, m, i, s, nullptr, 0);
            }
        }
    }
}

}  // namespace

void quantize(const Linear& l, Activations& a) {
    share(l.parallel, a.batches, 1, [&] {
        return [&](int64_t begin, int64_t end) {
            for (int64_t b = begin; b < end; b++) quantize_batch(l, a, b);
        };
    });
}

}  // namespace qaig::avx512

QAIG_TARGET_END

#else  // never called: level.cpp offers this level on x86-64 only

namespace qaig::avx512 {
void quantize(const Linear&, Activations&) {}
}  // namespace qaig::avx512

#endif
