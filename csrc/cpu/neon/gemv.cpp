// gemv with SDOT, for few rows of x: every code is unpacked and used once.
#include "cpu/neon/common.h"

#if defined(QAIG_NEON)

QAIG_DOTPROD_BEGIN

namespace qaig::neon {
namespace {

QAIG_DEFINE_UNROLL

constexpr int kSums = 16;  // registers for sums; the others hold codes, masks and x

// Multiplies R rows of P planes with a tile. For one row, codes stay in place: quads that begin at the same bit
// ("place") share sums, which are shifted when a segment ends.
template <int B, int R, int P>
void gemv_tile(const Linear& l, const Activations& a, int64_t t, const Tile& tile) {
    constexpr bool kInPlace = R == 1;
    constexpr int kPlaces = !kInPlace ? 1 : B == 2 ? 3 : B == 3 ? 2 : 1;
    constexpr int kEach = R * P * kPlaces;  // sums of four rows
    constexpr int H = 4 * kEach <= kSums ? 4 : 2 * kEach <= kSums ? 2 : 1;
    constexpr int kChains =
        2 * H * kEach <= kSums ? 2 : 1;  // independent sums, which hide the latency of the instruction
    const Shape& s = l.weight.shape;
    float out[R][kTileRows] = {};
    for (int64_t i = 0; i < s.segments(); i++) {
        const Segment segment = segment_at(s, i);
        const QParams qparams(l.weight, tile, i / s.segments_per_group());
        const float* x_scale = a.scales.data() + i * kMaxTerms * R;
        const int32_t* x_sum = a.sums.data() + i * kMaxTerms * R;
        const int64_t plane_stride = segment.units * kUnitQuads * R;
        for (int h0 = 0; h0 < kRegisters; h0 += H) {
            const auto* x = reinterpret_cast<const int32_t*>(a.words.data() + segment.unit * kUnitQuads * P * R);
            const uint32_t* words = tile.words + segment.unit * B * kTileRows + kRegisterRows * h0;
            int32x4_t sum[kPlaces][kChains][R][P][H];
            unroll<kChains * kEach * H>([&](auto j) QAIG_LAMBDA_INLINE { (&sum[0][0][0][0][0])[j] = vdupq_n_s32(0); });
            for (int64_t u = 0; u < segment.units; u++, words += B * kTileRows, x += kUnitQuads * R) {
                unroll<kUnitQuads>([&](auto q) QAIG_LAMBDA_INLINE {
                    constexpr int place = kPlaces == 1 ? 0 : place_bit(B, q) / B, chain = q % kChains;
                    int8x16_t codes[H];
                    unroll<H>([&](auto h)
                                  QAIG_LAMBDA_INLINE { codes[h] = quad<B, q, kInPlace>(words + kRegisterRows * h); });
                    unroll<R * P>([&](auto j) QAIG_LAMBDA_INLINE {
                        constexpr int m = j / P, p = j % P, word = q * R + m;
                        const int8x16_t four = vreinterpretq_s8_s32(vld1q_s32(x + p * plane_stride + word / 4 * 4));
                        unroll<H>([&](auto h) QAIG_LAMBDA_INLINE {
                            int32x4_t& to = sum[place][chain][m][p][h];
                            to = vdotq_laneq_s32(to, codes[h], four, word % 4);
                        });
                    });
                });
            }
            unroll<R * H>([&](auto j) QAIG_LAMBDA_INLINE {
                constexpr int m = j / H, h = j % H;
                int32x4_t whole[P];
                unroll<P>([&](auto p) QAIG_LAMBDA_INLINE {
                    whole[p] = vdupq_n_s32(0);
                    unroll<kPlaces>([&](auto place) QAIG_LAMBDA_INLINE {
                        int32x4_t at_place = sum[place][0][m][p][h];
                        if constexpr (kChains == 2) {
                            at_place = vaddq_s32(at_place, sum[place][1][m][p][h]);
                        }
                        if constexpr (place > 0) {
                            at_place = vshrq_n_s32(at_place, place * B);
                        }
                        whole[p] = vaddq_s32(whole[p], at_place);
                    });
                });
                float* at = out[m] + kRegisterRows * (h0 + h);
                float32x4_t y = vld1q_f32(at);
                unroll<terms(P)>([&](auto term) QAIG_LAMBDA_INLINE {
                    int32x4_t product = whole[2 * term];
                    if constexpr (term_planes(P, term) == 2) {
                        product = vaddq_s32(vshlq_n_s32(product, 8), whole[2 * term + 1]);
                    }
                    y = qparams.add(h0 + h, product, x_scale[term * R + m], x_sum[term * R + m], y);
                });
                vst1q_f32(at, y);
            });
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

}  // namespace qaig::neon

QAIG_TARGET_END

#endif
