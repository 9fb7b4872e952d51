// gemv with AVX2, for few rows of x: every code is used once, as it is unpacked.
//
// Codes of 2 to 4 bits take 8-bit products (VPMADDUBSW): two of them, and eight such sums, fit in 16 bits. Codes of 8
// bits take 16-bit products (VPMADDWD).
#include "cpu/avx2/common.h"

#if defined(__x86_64__)

QAIG_AVX2_BEGIN

namespace qaig::avx2 {
namespace {

// Adds the products of H halves of a unit with R rows of S planes (of quads) or parts (of pairs), which lie `plane` and
// `part` words apart.
template <int B, int R, int S, int H>
QAIG_INLINE void add_quads(const uint32_t* words, const uint32_t* x, int64_t plane, __m256i (&sum)[R][S][H]) {
    __m256i small[R][S][H];
    for (int i = 0; i < R * S * H; i++) {
        (&small[0][0][0])[i] = _mm256_setzero_si256();
    }
    unroll<kUnitQuads>([&](auto q) QAIG_LAMBDA_INLINE {
        __m256i codes[H];
        for (int h = 0; h < H; h++) {
            codes[h] = Quads::codes<B, q>(words + 8 * h);
        }
        for (int m = 0; m < R; m++) {
            for (int p = 0; p < S; p++) {
                const __m256i quad = _mm256_set1_epi32(static_cast<int>(x[p * plane + q * R + m]));
                for (int h = 0; h < H; h++) {
                    small[m][p][h] = _mm256_add_epi16(small[m][p][h], _mm256_maddubs_epi16(codes[h], quad));
                }
            }
        }
    });
    for (int i = 0; i < R * S * H; i++) {
        __m256i& total = (&sum[0][0][0])[i];
        total = _mm256_add_epi32(total, _mm256_madd_epi16((&small[0][0][0])[i], _mm256_set1_epi16(1)));
    }
}

template <int B, int R, int S, int H>
QAIG_INLINE void add_pairs(const uint32_t* words, const uint32_t* x, int64_t part, __m256i (&sum)[R][S][H]) {
    unroll<kUnitPairs>([&](auto i) QAIG_LAMBDA_INLINE {
        __m256i codes[H];
        for (int h = 0; h < H; h++) {
            codes[h] = Pairs::codes<B, i>(words + 8 * h);
        }
        for (int m = 0; m < R; m++) {
            for (int p = 0; p < S; p++) {
                const __m256i pair = _mm256_set1_epi32(static_cast<int>(x[p * part + i * R + m]));
                for (int h = 0; h < H; h++) {
                    sum[m][p][h] = _mm256_add_epi32(sum[m][p][h], _mm256_madd_epi16(codes[h], pair));
                }
            }
        }
    });
}

// R rows of P planes by a tile.
template <int B, int R, int P>
void gemv_tile(const Linear& l, const Activations& a, int64_t t, const Tile& tile) {
    constexpr bool kQuads = B <= 4;
    constexpr int kSums = kQuads ? P : parts(P), kPerUnit = kQuads ? kUnitQuads : kUnitPairs;
    constexpr int H = R * kSums <= 3 ? kHalves : 1;  // halves of the tile whose sums fit in the registers
    const Shape& s = l.weight.shape;
    float out[R][kTileRows] = {};
    for (int64_t i = 0; i < s.segments(); i++) {
        const Segment segment = segment_at(s, i);
        const Grid grid(l.weight, tile, i / s.segments_per_group());
        const uint32_t* x = a.words.data() + segment.unit * kPerUnit * kSums * R;
        const float* x_scale = a.scales.data() + i * kMaxParts * R;
        const int32_t* x_sum = a.sums.data() + i * kMaxParts * R;
        const int64_t apart = segment.units * kPerUnit * R;
        for (int h0 = 0; h0 < kHalves; h0 += H) {
            __m256i sum[R][kSums][H];
            for (int j = 0; j < R * kSums * H; j++) {
                (&sum[0][0][0])[j] = _mm256_setzero_si256();
            }
            for (int64_t u = 0; u < segment.units; u++) {
                const uint32_t* words = tile.words + (segment.unit + u) * B * kTileRows;
                if (h0 == 0) {
                    prefetch(words, B);
                }
                if constexpr (kQuads) {
                    add_quads<B, R, kSums, H>(words + 8 * h0, x + u * kPerUnit * R, apart, sum);
                } else {
                    add_pairs<B, R, kSums, H>(words + 8 * h0, x + u * kPerUnit * R, apart, sum);
                }
            }
            for (int m = 0; m < R; m++) {
                for (int h = 0; h < H; h++) {
                    float* at = out[m] + 8 * (h0 + h);
                    __m256 y = _mm256_loadu_ps(at);
                    for (int part = 0; part < parts(P); part++) {
                        __m256i whole = kQuads ? sum[m][2 * part % kSums][h] : sum[m][part % kSums][h];
                        if (kQuads && part_planes(P, part) == 2) {
                            whole = _mm256_add_epi32(_mm256_slli_epi32(whole, 8), sum[m][1 % kSums][h]);
                        }
                        y = grid.add(h0 + h, whole, x_scale[part * R + m], x_sum[part * R + m], y);
                    }
                    _mm256_storeu_ps(at, y);
                }
            }
        }
    }
    for (int64_t m = 0; m < std::min<int64_t>(R, l.rows); m++) {
        store_row(l, m, t, out[m]);
    }
}

using GemvTile = void (*)(const Linear&, const Activations&, int64_t, const Tile&);

template <int B, int R>
GemvTile gemv_tile_of(int planes) {
    return planes == 1 ? gemv_tile<B, R, 1> : planes == 2 ? gemv_tile<B, R, 2> : gemv_tile<B, R, 3>;
}

template <int B>
GemvTile gemv_tile_of(int64_t rows, int planes) {
    return rows == 1 ? gemv_tile_of<B, 1>(planes) : rows == 2 ? gemv_tile_of<B, 2>(planes) : gemv_tile_of<B, 4>(planes);
}

GemvTile gemv_tile_of(int bits, int64_t rows, int planes) {
    switch (bits) {
        case 2: return gemv_tile_of<2>(rows, planes);
        case 3: return gemv_tile_of<3>(rows, planes);
        case 4: return gemv_tile_of<4>(rows, planes);
        default: return gemv_tile_of<8>(rows, planes);
    }
}

}  // namespace

void gemv(const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    const GemvTile tile = gemv_tile_of(kernel_bits(l.weight.shape.bits), a.batch_rows, a.planes[0]);
    const TileReader reader(l.weight);
    for (int64_t t = begin; t < end; t++) {
        tile(l, a, t, reader(t));
    }
}

}  // namespace qaig::avx2

QAIG_TARGET_END

#endif
