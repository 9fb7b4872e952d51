// gemv with 256-bit registers, for few rows of x: every code is used once, as it is unpacked.
//
// `Sums` are the sums of a segment's products: of R rows of P planes with half a tile, or with all of it.
//
//   kBits                                          of the codes
//   kPlanes, kWords                                planes of x, or parts; words of one, per row and unit
//   kHalvesAtOnce                                  1 or 2
//   kPrefetch                                      whether words are asked for in advance
//   void add(const uint32_t* words, const uint32_t* x, int64_t apart)
//                                                  adds a unit; planes, or parts, of x are `apart` words apart
//   __m256i part<Part>(m, h)                       the sum of a part (activations.h), for row m and half h
#pragma once

#include "cpu/avx2/common.h"

#if defined(__x86_64__)

QAIG_AVX2_BEGIN

namespace qaig::avx2 {

template <int R, int P, class Sums>
void gemv_tile(const Linear& l, const Activations& a, int64_t t, const Tile& tile) {
    constexpr int H = Sums::kHalvesAtOnce;
    const Shape& s = l.weight.shape;
    const uint32_t* words = tile.words;
    const uint32_t* x = a.words.data();
    const float* x_scale = a.scales.data();
    const int32_t* x_sum = a.sums.data();
    const int64_t units = s.units_per_group();
    float out[R][kTileRows] = {};
    for (int64_t g = 0; g < s.groups(); g++) {
        const Grid grid(l.weight, tile, g);
        for (int64_t u0 = 0; u0 < units; u0 += kSegmentUnits) {
            int64_t n = std::min<int64_t>(kSegmentUnits, units - u0);
            __asm__("" : "+r"(n));  // GCC would unroll the loop over units, and run out of registers
            for (int h0 = 0; h0 < kHalves; h0 += H) {
                Sums sums;
                for (int64_t u = 0; u < n; u++) {
                    const uint32_t* unit = words + u * Sums::kBits * kTileRows;
                    if (Sums::kPrefetch && h0 == 0) {
                        prefetch(unit, Sums::kBits);
                    }
                    sums.add(unit + 8 * h0, x + u * Sums::kWords * R, n * Sums::kWords * R);
                }
                unroll<R>([&](auto m) QAIG_LAMBDA_INLINE {
                    unroll<H>([&](auto h) QAIG_LAMBDA_INLINE {
                        float* at = out[m] + 8 * (h0 + h);
                        __m256 y = _mm256_loadu_ps(at);
                        unroll<parts(P)>([&](auto part) QAIG_LAMBDA_INLINE {
                            const int i = part * R + m;
                            y = grid.add(h0 + h, sums.template part<part>(m, h), x_scale[i], x_sum[i], y);
                        });
                        _mm256_storeu_ps(at, y);
                    });
                });
            }
            words += n * Sums::kBits * kTileRows;
            x += n * Sums::kWords * Sums::kPlanes * R;
            x_scale += kMaxParts * R;
            x_sum += kMaxParts * R;
        }
    }
    for (int64_t m = 0; m < std::min<int64_t>(R, l.rows); m++) {
        store_row(l, m, t, out[m]);
    }
}

using GemvTile = void (*)(const Linear&, const Activations&, int64_t, const Tile&);

template <template <int, int, int> class Sums, int B, int R>
GemvTile gemv_tile_of(int planes) {
    return planes == 1   ? gemv_tile<R, 1, Sums<B, R, 1>>
           : planes == 2 ? gemv_tile<R, 2, Sums<B, R, 2>>
                         : gemv_tile<R, 3, Sums<B, R, 3>>;
}

template <template <int, int, int> class Sums, int B>
GemvTile gemv_tile_of(int64_t rows, int planes) {
    return rows == 1   ? gemv_tile_of<Sums, B, 1>(planes)
           : rows == 2 ? gemv_tile_of<Sums, B, 2>(planes)
                       : gemv_tile_of<Sums, B, 4>(planes);
}

template <template <int, int, int> class Sums>
GemvTile gemv_tile_of(int bits, int64_t rows, int planes) {
    switch (bits) {
        case 2: return gemv_tile_of<Sums, 2>(rows, planes);
        case 3: return gemv_tile_of<Sums, 3>(rows, planes);
        case 4: return gemv_tile_of<Sums, 4>(rows, planes);
        default: return gemv_tile_of<Sums, 8>(rows, planes);
    }
}

template <template <int, int, int> class Sums>
void gemv_with(const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    const GemvTile tile = gemv_tile_of<Sums>(kernel_bits(l.weight.shape.bits), a.batch_rows, a.planes[0]);
    const TileReader reader(l.weight);
    for (int64_t t = begin; t < end; t++) {
        tile(l, a, t, reader(t));
    }
}

}  // namespace qaig::avx2

QAIG_TARGET_END

#endif
