// Shared by the AVX2 kernels: loads, prefetching, scales and zero points, unpacked codes.
#pragma once

#include "cpu/kernels.h"
#include "cpu/unroll.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define QAIG_AVX2_BEGIN QAIG_TARGET_BEGIN("avx2,fma,f16c")

QAIG_AVX2_BEGIN

namespace qaig::avx2 {

QAIG_DEFINE_UNROLL

constexpr int kHalves = 2;                // a tile's 16 rows are two registers
constexpr int64_t kPrefetchBytes = 8192;  // how far ahead weights are prefetched, across tiles

QAIG_INLINE __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

QAIG_INLINE void prefetch(const uint32_t* words, int count) {
    for (int i = 0; i < count; i++) {
        _mm_prefetch(reinterpret_cast<const char*>(words + i * kTileRows) + kPrefetchBytes, _MM_HINT_T1);
    }
}

QAIG_INLINE __m256 load_eight(const void* p, Scalar type, int64_t at) {
    if (type == Scalar::f32) {
        return _mm256_loadu_ps(static_cast<const float*>(p) + at);
    }
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(p) + at));
    if (type == Scalar::f16) {
        return _mm256_cvtph_ps(half);
    }
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

QAIG_INLINE __m256i load_zero(const uint8_t* zero, int bits, int64_t at) {
    if (zero == nullptr) {
        return _mm256_set1_epi32(1 << (bits - 1));
    }
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zero + at)));
}

// Scales and zero points of a tile in one group.
struct QParams {
    __m256 scale[kHalves];
    __m256i zero[kHalves];

    QAIG_INLINE QParams(const Weight& w, const Tile& tile, int64_t group) {
        for (int h = 0; h < kHalves; h++) {
            scale[h] = load_eight(tile.scale, w.scale_type, group * kTileRows + 8 * h);
            zero[h] = load_zero(tile.zero, w.shape.bits, group * kTileRows + 8 * h);
        }
    }

    // Adds scale * x_scale * (sum - zero * x_sum) to `out`. `sum` has products of codes and q, x_sum is the sum of q.
    QAIG_INLINE __m256 add(int h, __m256i sum, float x_scale, int32_t x_sum, __m256 out) const {
        const __m256i offset = _mm256_mullo_epi32(zero[h], _mm256_set1_epi32(x_sum));
        const __m256 exact = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, offset));
        return _mm256_fmadd_ps(_mm256_mul_ps(scale[h], _mm256_set1_ps(x_scale)), exact, out);
    }
};

// Unpacks pair or quad I of a unit for 8 rows: two slots as 16-bit integers, or four slots as bytes.
struct Pairs {
    static constexpr int kPerUnit = kUnitPairs;
    template <int B, int I>
    static QAIG_INLINE __m256i codes(const uint32_t* words) {
        return at<B, I / 2>(words, 8 * (I % 2), _mm256_set1_epi16(3), _mm256_set1_epi16(4),
                            _mm256_set1_epi16((1 << B) - 1));
    }

    template <int B, int Q>
    static QAIG_INLINE __m256i at(const uint32_t* words, int shift, __m256i low_mask, __m256i high_mask, __m256i mask) {
        if constexpr (B == 3 && Q >= 6) {  // spread over three words
            const __m256i low = _mm256_srli_epi16(load(words + (Q - 6) * kTileRows), 6 + shift);
            const __m256i high = _mm256_srli_epi16(load(words + 2 * kTileRows), Q - 2 + shift);
            return _mm256_or_si256(_mm256_and_si256(low, low_mask), _mm256_and_si256(high, high_mask));
        } else {
            const __m256i word = load(words + quad_word(B, Q) * kTileRows);
            const int bit = quad_bit(B, Q) + shift;
            return _mm256_and_si256(bit > 0 ? _mm256_srli_epi16(word, bit) : word, mask);
        }
    }
};

struct Quads {
    static constexpr int kPerUnit = kUnitQuads;
    template <int B, int I>
    static QAIG_INLINE __m256i codes(const uint32_t* words) {
        return Pairs::at<B, I>(words, 0, _mm256_set1_epi8(3), _mm256_set1_epi8(4),
                               _mm256_set1_epi8(static_cast<char>((1 << B) - 1)));
    }
};

}  // namespace qaig::avx2

QAIG_TARGET_END

#endif
