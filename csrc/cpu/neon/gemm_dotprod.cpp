// gemm with SDOT: each lane multiplies 4 channels of a row of the weight with 4 channels of a row of x.
#include "cpu/neon/gemm.h"

#if defined(QAIG_NEON)

QAIG_DOTPROD_BEGIN

namespace qaig::neon {
namespace {

QAIG_DEFINE_UNROLL

constexpr int H = 2;  // registers of the tile at a time: their sums with 8 rows fit in the registers

// R is 5 to 8. One load has the first four rows of x, another the last four.
template <int R, int P>
void add_rows(const int8_t* codes, int64_t units, const QParams& qparams, const uint32_t* x, const float* x_scale,
              const int32_t* x_sum, float* out) {
    const int64_t quads = units * kUnitQuads;
    const auto* term_x = reinterpret_cast<const int32_t*>(x);
    for (int term = 0; term < terms(P); term++) {
        for (int h0 = 0; h0 < kRegisters; h0 += H) {
            const int32_t* at = term_x;
            int32x4_t sum[R][H];
            unroll<R * H>([&](auto j) QAIG_LAMBDA_INLINE { sum[j / H][j % H] = vdupq_n_s32(0); });
            for (int p = 0; p < term_planes(P, term); p++) {
                if (p == 1) {
                    unroll<R * H>([&](auto j)
                                      QAIG_LAMBDA_INLINE { sum[j / H][j % H] = vshlq_n_s32(sum[j / H][j % H], 8); });
                }
                for (int64_t q = 0; q < quads; q++, at += R) {
                    const int8_t* from = codes + q * kQuadBytes + 16 * h0;
                    const int8x16_t rows[H] = {vld1q_s8(from), vld1q_s8(from + 16)};
                    const int8x16_t first = vreinterpretq_s8_s32(vld1q_s32(at));
                    const int8x16_t last = vreinterpretq_s8_s32(vld1q_s32(at + R - 4));
                    unroll<R * H>([&](auto j) QAIG_LAMBDA_INLINE {
                        constexpr int m = j / H, h = j % H;
                        if constexpr (m < 4) {
                            sum[m][h] = vdotq_laneq_s32(sum[m][h], rows[h], first, m);
                        } else {
                            sum[m][h] = vdotq_laneq_s32(sum[m][h], rows[h], last, m - (R - 4));
                        }
                    });
                }
            }
            unroll<R * H>([&](auto j) QAIG_LAMBDA_INLINE {
                constexpr int m = j / H, h = j % H;
                float* y = out + m * kTileRows + kRegisterRows * (h0 + h);
                vst1q_f32(y, qparams.add(h0 + h, sum[m][h], x_scale[term * R + m], x_sum[term * R + m], vld1q_f32(y)));
            });
        }
        term_x += term_planes(P, term) * quads * R;
    }
}

template <int R>
AddRows add_rows_of(int planes) {
    return planes == 1 ? add_rows<R, 1> : planes == 2 ? add_rows<R, 2> : add_rows<R, 3>;
}

AddRows add_rows_of(int64_t rows, int planes) {
    switch (rows) {
        case 5: return add_rows_of<5>(planes);
        case 6: return add_rows_of<6>(planes);
        case 7: return add_rows_of<7>(planes);
        default: return add_rows_of<8>(planes);
    }
}

}  // namespace

void gemm_dotprod(const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    gemm_with({unpack_quads, add_rows_of}, l, a, begin, end);
}

}  // namespace qaig::neon

QAIG_TARGET_END

#endif
