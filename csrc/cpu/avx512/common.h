// Shared by the AVX-512 kernels: loads and stores, scales and zero points, unpacked codes.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/types.h"
#include "cpu/unroll.h"

#if defined(__x86_64__)

#define QAIG_AVX512_BEGIN QAIG_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")

QAIG_AVX512_BEGIN

namespace qaig::avx512 {

constexpr int64_t kPrefetchBytes = 8192;  // how far ahead weights are prefetched, across tiles

QAIG_DEFINE_UNROLL

// Mask of the first `count` of 16 lanes. A negative count gives none, a larger one all.
QAIG_INLINE __mmask16 first(int64_t count) {
    return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

QAIG_INLINE __m512 load(const void* p, Scalar type, int64_t i, __mmask16 mask = 0xffff) {
    if (type == Scalar::f32) {
        return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(p) + i);
    }
    const __m256i half = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(p) + i);
    if (type == Scalar::f16) {
        return _mm512_cvtph_ps(half);
    }
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// float32 to bfloat16, to nearest even; NaN stays NaN. (VCVTNEPS2BF16 would flush denormals.)
QAIG_INLINE __m256i to_bf16(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    rounded = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), rounded, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

QAIG_INLINE void store(void* p, Scalar type, int64_t i, __m512 x, __mmask16 mask) {
    if (type == Scalar::f32) {
        return _mm512_mask_storeu_ps(static_cast<float*>(p) + i, mask, x);
    }
    const __m256i half = type == Scalar::f16 ? _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT) : to_bf16(x);
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(p) + i, mask, half);
}

// Scales of a tile's 16 rows in group `g`.
QAIG_INLINE __m512 load_scale(const void* scale, Scalar type, int64_t g) { return load(scale, type, g * kTileRows); }

// Zero points of a tile's 16 rows in group `g`.
QAIG_INLINE __m512i load_zero(const uint8_t* zero, int bits, int64_t g) {
    if (zero == nullptr) {
        return _mm512_set1_epi32(1 << (bits - 1));
    }
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zero + g * kTileRows)));
}

// The words of a unit, and its codes.
template <int B>
struct Unit {
    __m512i w[B];

    QAIG_INLINE void load(const uint32_t* words) {
        for (int i = 0; i < B; i++) {
            w[i] = _mm512_loadu_si512(words + i * kTileRows);
        }
    }

    // Quad Q of 3 bits, whose codes are spread over words. Each byte has one code. The bits above it are not cleared.
    template <int Q>
    QAIG_INLINE __m512i spread_quad() const {
        const __m512i low = _mm512_srli_epi16(w[Q - 6], 6), high = _mm512_srli_epi16(w[2 % B], Q - 2);
        return _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(3), 0xe4);  // mask ? low : high
    }

    // Quad Q as unsigned bytes.
    template <int Q>
    QAIG_INLINE __m512i quad() const {
        if constexpr (B == 8) {
            return w[Q];
        } else if constexpr (B == 3 && Q >= 6) {
            return _mm512_and_si512(spread_quad<Q>(), _mm512_set1_epi8(7));
        } else {
            constexpr int bit = quad_bit(B, Q);
            const __m512i word = w[quad_word(B, Q)];
            return _mm512_and_si512(bit ? _mm512_srli_epi16(word, bit) : word, _mm512_set1_epi8((1 << B) - 1));
        }
    }
};

}  // namespace qaig::avx512

QAIG_TARGET_END

#endif
