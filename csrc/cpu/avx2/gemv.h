// gemv with 256-bit registers, for few rows of x: every code is unpacked and used once.
//
// `Accumulators` sum up a segment's products: R rows of P planes times half a tile, or a whole one.
//
//   kBits                                          of the codes
//   kPlanes, kWords                                planes of x, or terms; words of each, per row and unit
//   kHalvesAtOnce                                  1 or 2
//   kPrefetch                                      whether to prefetch words
//   void add(const uint32_t* words, const uint32_t* x, int64_t plane_stride)
//                                                  adds a unit; `plane_stride` is from one plane of x to the next
//   __m256i term<Term>(m, h)                       the sum of a term (activations.h), for row m and half h
#pragma once

#include "cpu/avx2/common.h"

#if defined(__x86_64__)

QAIG_AVX2_BEGIN

namespace qaig::avx2 {

template <int R, int P, class Accumulators>
void gemv_tile(const Linear& l, const Activations& a, int64_t t, const Tile& tile) {
    constexpr int H = Accumulators::kHalvesAtOnce;
    const Shape& s = l.weight.shape;
    const uint32_t* words = tile.words;
    const uint32_t* x = a.words.data();
    const float* x_scale = a.scales.data();
    const int32_t* x_sum = a.sums.data();
    const int64_t units = s.units_per_group();
    float out[R][kTileRows] = {};
    for (int64_t g = 0; g < s.groups(); g++) {
        const QParams qparams(l.weight, tile, g);
        for (int64_t u0 = 0; u0 < units; u0 += kSegmentUnits) {
            int64_t n = std::min<int64_t>(kSegmentUnits, units - u0);
            __asm__("" : "+r"(n));  // keeps GCC from unrolling the loop over units, which would spill registers
            for (int h0 = 0; h0 < kHalves; h0 += H) {
                Accumulators sums;
                for (int64_t u = 0; u < n; u++) {
                    const uint32_t* unit = words + u * Accumulators::kBits * kTileRows;
                    if (Accumulators::kPrefetch && h0 == 0) {
                        prefetch(unit, Accumulators::kBits);
                    }
                    sums.add(unit + 8 * h0, x + u * Accumulators::kWords * R, n * Accumulators::kWords * R);
                }
                unroll<R>([&](auto m) QAIG_LAMBDA_INLINE {
                    unroll<H>([&](auto h) QAIG_LAMBDA_INLINE {
                        float* at = out[m] + 8 * (h0 + h);
                        __m256 y = _mm256_loadu_ps(at);
                        unroll<terms(P)>([&](auto term) QAIG_LAMBDA_INLINE {
                            const int i = term * R + m;
                            y = qparams.add(h0 + h, sums.template term<term>(m, h), x_scale[i], x_sum[i], y);
                        });
                        _mm256_storeu_ps(at, y);
                    });
                });
            }
            words += n * Accumulators::kBits * kTileRows;
            x += n * Accumulators::kWords * Accumulators::kPlanes * R;
            x_scale += kMaxTerms * R;
            x_sum += kMaxTerms * R;
        }
    }
    for (int64_t m = 0; m < std::min<int64_t>(R, l.rows); m++) {
        store_row(l, m, t, out[m]);
    }
}

using GemvTile = void (*)(const Linear&, const Activations&, int64_t, const Tile&);

template <template <int, int, int> class Accumulators, int B, int R>
GemvTile gemv_tile_of(int planes) {
    return planes == 1   ? gemv_tile<R, 1, Accumulators<B, R, 1>>
           : planes == 2 ? gemv_tile<R, 2, Accumulators<B, R, 2>>
                         : gemv_tile<R, 3, Accumulators<B, R, 3>>;
}

template <template <int, int, int> class Accumulators, int B>
GemvTile gemv_tile_of(int64_t rows, int planes) {
    return rows == 1   ? gemv_tile_of<Accumulators, B, 1>(planes)
           : rows == 2 ? gemv_tile_of<Accumulators, B, 2>(planes)
                       : gemv_tile_of<Accumulators, B, 4>(planes);
}

template <template <int, int, int> class Accumulators>
GemvTile gemv_tile_of(int bits, int64_t rows, int planes) {
    switch (bits) {
        case 2: return gemv_tile_of<Accumulators, 2>(rows, planes);
        case 3: return gemv_tile_of<Accumulators, 3>(rows, planes);
        case 4: return gemv_tile_of<Accumulators, 4>(rows, planes);
        default: return gemv_tile_of<Accumulators, 8>(rows, planes);
    }
}

template <template <int, int, int> class Accumulators>
void gemv_with(const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    const GemvTile tile = gemv_tile_of<Accumulators>(kernel_bits(l.weight.shape.bits), a.batch_rows, a.planes[0]);
    const TileReader reader(l.weight);
    for (int64_t t = begin; t < end; t++) {
        tile(l, a, t, reader(t));
    }
}

}  // namespace qaig::avx2

QAIG_TARGET_END

#endif
