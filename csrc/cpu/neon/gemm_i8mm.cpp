// gemm with SMMLA: multiplies 2 rows of x with 2 rows of the weight, 8 channels (a pair of quads) at a time.
#include "cpu/neon/gemm.h"

#if defined(QAIG_NEON)

QAIG_I8MM_BEGIN

namespace qaig::neon {
namespace {

QAIG_DEFINE_UNROLL

constexpr int H = 4;                      // pairs of rows of the tile at a time: their sums with 8 rows of x fit
constexpr int kRowPairs = kTileRows / 2;  // of a tile

// R is 6 or 8. A sum's lanes are: row m of x by rows r, r + 1 of the weight, then row m + 1 by the same.
template <int R, int P>
void add_rows(const int8_t* codes, int64_t units, const QParams& qparams, const uint32_t* x, const float* x_scale,
              const int32_t* x_sum, float* out) {
    const int64_t quad_pairs = units * kUnitQuadPairs;
    const auto* term_x = reinterpret_cast<const int8_t*>(x);
    for (int term = 0; term < terms(P); term++) {
        for (int h0 = 0; h0 < kRowPairs; h0 += H) {
            const int8_t* at = term_x;
            int32x4_t sum[R / 2][H];
            unroll<R / 2 * H>([&](auto j) QAIG_LAMBDA_INLINE { sum[j / H][j % H] = vdupq_n_s32(0); });
            for (int p = 0; p < term_planes(P, term); p++) {
                if (p == 1) {
                    unroll<R / 2 * H>(
                        [&](auto j) QAIG_LAMBDA_INLINE { sum[j / H][j % H] = vshlq_n_s32(sum[j / H][j % H], 8); });
                }
                for (int64_t q = 0; q < quad_pairs; q++, at += 8 * R) {
                    const int8_t* from = codes + q * kQuadPairBytes + 16 * h0;
                    int8x16_t rows[H];
                    unroll<H>([&](auto h) QAIG_LAMBDA_INLINE { rows[h] = vld1q_s8(from + 16 * h); });
                    unroll<R / 2>([&](auto m) QAIG_LAMBDA_INLINE {
                        const int8x16_t two = vld1q_s8(at + 16 * m);
                        unroll<H>([&](auto h) QAIG_LAMBDA_INLINE { sum[m][h] = vmmlaq_s32(sum[m][h], two, rows[h]); });
                    });
                }
            }
            unroll<R / 2 * H / 2>([&](auto j) QAIG_LAMBDA_INLINE {
                constexpr int m = j / (H / 2), h = j % (H / 2);
                const int64x2_t a = vreinterpretq_s64_s32(sum[m][2 * h]), b = vreinterpretq_s64_s32(sum[m][2 * h + 1]);
                const int32x4_t four[2] = {vreinterpretq_s32_s64(vzip1q_s64(a, b)),
                                           vreinterpretq_s32_s64(vzip2q_s64(a, b))};
                const int place = h0 / 2 + h;  // of these four rows in the tile
                unroll<2>([&](auto i) QAIG_LAMBDA_INLINE {
                    constexpr int row = 2 * m + i;
                    float* y = out + row * kTileRows + kRegisterRows * place;
                    vst1q_f32(
                        y, qparams.add(place, four[i], x_scale[term * R + row], x_sum[term * R + row], vld1q_f32(y)));
                });
            });
        }
        term_x += term_planes(P, term) * quad_pairs * 8 * R;
    }
}

template <int R>
AddRows add_rows_of(int planes) {
    return planes == 1 ? add_rows<R, 1> : planes == 2 ? add_rows<R, 2> : add_rows<R, 3>;
}

AddRows add_rows_of(int64_t rows, int planes) { return rows == 6 ? add_rows_of<6>(planes) : add_rows_of<8>(planes); }

}  // namespace

void gemm_i8mm(const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    gemm_with({unpack_quad_pairs, add_rows_of}, l, a, begin, end);
}

}  // namespace qaig::neon

QAIG_TARGET_END

#endif
