#include "avx512.h"
#include "kernels.h"
#include "quantize.h"
#include "rotation.h"

#if defined(__x86_64__)

QAIG_AVX512_BEGIN

namespace qaig::avx512 {
namespace {

constexpr int kVectors = kSegmentUnits * kUnitSlots / 16;  // float32 vectors in a segment

// Low bytes of 32 integers, in a unit's byte order.
QAIG_INLINE void put_bytes(__m512i q0, __m512i q1, uint32_t* out, int64_t stride) {
    const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    alignas(32) uint32_t quads[kUnitQuads];
    _mm_store_si128(reinterpret_cast<__m128i*>(quads), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(q0), order));
    _mm_store_si128(reinterpret_cast<__m128i*>(quads) + 1, _mm_shuffle_epi8(_mm512_cvtepi32_epi8(q1), order));
    for (int i = 0; i < kUnitQuads; i++) {
        out[i * stride] = quads[i];
    }
}

// An integer without its low byte, which is taken as signed.
QAIG_INLINE __m512i upper(__m512i q) { return _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8); }

QAIG_INLINE __m512i magnitude(__m512 x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

// Butterflies over lanes Distance apart.
template <int Distance>
QAIG_INLINE __m512 butterfly(__m512 x) {
    const __m512 other = Distance == 1   ? _mm512_permute_ps(x, 0xb1)
                         : Distance == 2 ? _mm512_permute_ps(x, 0x4e)
                         : Distance == 4 ? _mm512_shuffle_f32x4(x, x, 0xb1)
                                         : _mm512_shuffle_f32x4(x, x, 0x4e);
    constexpr __mmask16 kUpper = Distance == 1 ? 0xaaaa : Distance == 2 ? 0xcccc : Distance == 4 ? 0xf0f0 : 0xff00;
    return _mm512_mask_sub_ps(_mm512_add_ps(x, other), kUpper, other, x);
}

// A block of 16 * Count channels from element `at` on, k of its row.
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

    uint32_t largest() const {
        __m512i most = _mm512_setzero_si512();
        for (int i = 0; i < kVectors; i++) {
            most = _mm512_max_epu32(most, magnitude(x[i]));
        }
        return _mm512_reduce_max_epu32(most);
    }

    bool has_outliers(uint32_t largest) const {
        const __m512i bound = _mm512_set1_epi32(static_cast<int>(largest < 7u << 23 ? 0 : largest - (7u << 23)));
        int small = 0, nonzero = 0;
        for (int i = 0; i < kVectors; i++) {
            const __m512i bits = magnitude(x[i]);
            const __mmask16 used = _mm512_test_epi32_mask(bits, bits);
            nonzero += __builtin_popcount(used);
            small += __builtin_popcount(_mm512_mask_cmplt_epu32_mask(used, bits, bound));
        }
        return 2 * small > nonzero;
    }

    PartSums put(const Place& place, bool /* pairs: quads is all there is */, int planes, float scale) const {
        __m512i sum = _mm512_setzero_si512(), low_sum = sum;
        for (int64_t u = 0; u < units; u++) {
            __m512i q0 = _mm512_cvtps_epi32(_mm512_div_ps(x[2 * u], _mm512_set1_ps(scale)));
            __m512i q1 = _mm512_cvtps_epi32(_mm512_div_ps(x[2 * u + 1], _mm512_set1_ps(scale)));
            uint32_t* out = place.out + u * kUnitQuads * place.stride;
            if (planes == 3) {
                const __m512i u0 = upper(q0), u1 = upper(q1);
                const __m512i low =
                    _mm512_sub_epi32(_mm512_add_epi32(q0, q1), _mm512_slli_epi32(_mm512_add_epi32(u0, u1), 8));
                low_sum = _mm512_add_epi32(low_sum, low);
                put_bytes(q0, q1, out + 2 * place.plane, place.stride);
                q0 = u0;
                q1 = u1;
            }
            sum = _mm512_add_epi32(sum, _mm512_add_epi32(q0, q1));
            if (planes == 1) {
                put_bytes(q0, q1, out, place.stride);
            } else {
                put_bytes(q0, q1, out + place.plane, place.stride);
                put_bytes(upper(q0), upper(q1), out, place.stride);
            }
        }
        return {_mm512_reduce_add_epi32(sum), _mm512_reduce_add_epi32(low_sum)};
    }
};

}  // namespace

void quantize(const Linear& l, Activations& a) { quantize_with<Values>(l, a); }

}  // namespace qaig::avx512

QAIG_TARGET_END

#else  // never called: level.cpp offers this level on x86-64 only

namespace qaig::avx512 {
void quantize(const Linear&, Activations&) {}
}  // namespace qaig::avx512

#endif
