// Dequantizes a tile with AVX2 into rows. Registers hold a channel of 8 rows, so they are transposed before the stores.
#include "cpu/avx2/common.h"

#if defined(__x86_64__)

QAIG_AVX2_BEGIN

namespace qaig::avx2 {
namespace {

constexpr int kBlock = 8;  // channels and rows that are transposed at once

// Transposes 8 registers of 8 values.
QAIG_INLINE void transpose(__m256 (&v)[kBlock]) {
    __m256 pairs[kBlock], quads[kBlock];
    unroll<kBlock / 2>([&](auto i) QAIG_LAMBDA_INLINE {
        pairs[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
    });
    unroll<kBlock / 2>([&](auto i) QAIG_LAMBDA_INLINE {
        constexpr int from = i / 2 * 4 + i % 2;
        quads[2 * i] = _mm256_shuffle_ps(pairs[from], pairs[from + 2], 0x44);
        quads[2 * i + 1] = _mm256_shuffle_ps(pairs[from], pairs[from + 2], 0xEE);
    });
    unroll<kBlock / 2>([&](auto i) QAIG_LAMBDA_INLINE {
        v[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
    });
}

// Dequantizes channels 8 I to 8 I + 7 of a unit for half a tile, and stores the first `count` of them.
template <int B, int I>
QAIG_INLINE void dequantize_block(const uint32_t* words, __m256i zero, __m256 scale, int64_t count, int64_t stride,
                                  float* out) {
    __m256 v[kBlock];
    unroll<2>([&](auto q) QAIG_LAMBDA_INLINE {
        const __m256i quad = Quads::codes<B, 2 * I + q>(words);
        unroll<4>([&](auto e) QAIG_LAMBDA_INLINE {
            const __m256i code = _mm256_and_si256(_mm256_srli_epi32(quad, 8 * quad_byte(e)), _mm256_set1_epi32(0xFF));
            v[4 * q + e] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(code, zero)), scale);
        });
    });
    transpose(v);
    if (count >= kBlock) {
        unroll<kBlock>([&](auto r) QAIG_LAMBDA_INLINE { _mm256_storeu_ps(out + r * stride, v[r]); });
    } else if (count > 0) {
        const __m256i at = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), at);
        unroll<kBlock>([&](auto r) QAIG_LAMBDA_INLINE { _mm256_maskstore_ps(out + r * stride, mask, v[r]); });
    }
}

template <int B>
void dequantize(const Weight& w, const Tile& tile, float* out) {
    const Shape& s = w.shape;
    const uint32_t* words = tile.words;
    for (int64_t g = 0; g < s.groups(); g++) {
        const QParams qparams(w, tile, g);
        for (int64_t k = 0; k < s.group_size; k += kUnitSlots, words += B * kTileRows) {
            prefetch(words, B);
            // Half a tile at a time: if rows are a multiple of 4 KiB apart, 16 rows would exceed the ways of the L1
            // cache.
            for (int h = 0; h < kHalves; h++) {
                unroll<kUnitSlots / kBlock>([&](auto i) QAIG_LAMBDA_INLINE {
                    const int64_t first = k + kBlock * i;
                    dequantize_block<B, i>(words + kBlock * h, qparams.zero[h], qparams.scale[h], s.group_size - first,
                                           s.in_features, out + kBlock * h * s.in_features + g * s.group_size + first);
                });
            }
        }
    }
}

}  // namespace

void dequantize_tile(const Weight& w, const Tile& tile, float* out) {
    switch (kernel_bits(w.shape.bits)) {
        case 2: return dequantize<2>(w, tile, out);
        case 3: return dequantize<3>(w, tile, out);
        case 4: return dequantize<4>(w, tile, out);
        default: return dequantize<8>(w, tile, out);
    }
}

}  // namespace qaig::avx2

QAIG_TARGET_END

#endif
