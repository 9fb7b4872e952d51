// gemv with AVX2.
//
// Codes of 2 to 4 bits take 8-bit products (VPMADDUBSW). 16 bits hold eight sums of two such products. Codes of 8 bits
// take 16-bit products (VPMADDWD).
#include "cpu/avx2/gemv.h"

#if defined(__x86_64__)

QAIG_AVX2_BEGIN

namespace qaig::avx2 {
namespace {

template <int B, int R, int P>
struct Accumulators {
    static constexpr bool kQuads = B <= 4;
    static constexpr int kPlanes = kQuads ? P : terms(P);  // of quads, or terms of pairs
    static constexpr int kWords = kQuads ? kUnitQuads : kUnitPairs;
    static constexpr int H = R * kPlanes <= 3 ? kHalves : 1;  // as many as have room for sums in the registers
    static constexpr int kBits = B, kHalvesAtOnce = H;
    static constexpr bool kPrefetch = true;

    __m256i sum[R][kPlanes][H];

    QAIG_INLINE Accumulators() { clear(sum); }

    static QAIG_INLINE void clear(__m256i (&all)[R][kPlanes][H]) {
        unroll<R * kPlanes * H>([&](auto i) QAIG_LAMBDA_INLINE { (&all[0][0][0])[i] = _mm256_setzero_si256(); });
    }

    QAIG_INLINE void add(const uint32_t* words, const uint32_t* x, int64_t plane_stride) {
        if constexpr (kQuads) {
            add_quads(words, x, plane_stride);
        } else {
            add_pairs(words, x, plane_stride);
        }
    }

    QAIG_INLINE void add_quads(const uint32_t* words, const uint32_t* x, int64_t plane_stride) {
        __m256i small[R][kPlanes][H];
        clear(small);
        unroll<kUnitQuads>([&](auto q) QAIG_LAMBDA_INLINE {
            __m256i codes[H];
            for (int h = 0; h < H; h++) {
                codes[h] = Quads::codes<B, q>(words + 8 * h);
            }
            for (int m = 0; m < R; m++) {
                for (int p = 0; p < kPlanes; p++) {
                    const __m256i quad = _mm256_set1_epi32(static_cast<int>(x[p * plane_stride + q * R + m]));
                    for (int h = 0; h < H; h++) {
                        small[m][p][h] = _mm256_add_epi16(small[m][p][h], _mm256_maddubs_epi16(codes[h], quad));
                    }
                }
            }
        });
        unroll<R * kPlanes * H>([&](auto i) QAIG_LAMBDA_INLINE {
            __m256i& total = (&sum[0][0][0])[i];
            total = _mm256_add_epi32(total, _mm256_madd_epi16((&small[0][0][0])[i], _mm256_set1_epi16(1)));
        });
    }

    QAIG_INLINE void add_pairs(const uint32_t* words, const uint32_t* x, int64_t plane_stride) {
        unroll<kUnitPairs>([&](auto i) QAIG_LAMBDA_INLINE {
            __m256i codes[H];
            for (int h = 0; h < H; h++) {
                codes[h] = Pairs::codes<B, i>(words + 8 * h);
            }
            for (int m = 0; m < R; m++) {
                for (int p = 0; p < kPlanes; p++) {
                    const __m256i pair = _mm256_set1_epi32(static_cast<int>(x[p * plane_stride + i * R + m]));
                    for (int h = 0; h < H; h++) {
                        sum[m][p][h] = _mm256_add_epi32(sum[m][p][h], _mm256_madd_epi16(codes[h], pair));
                    }
                }
            }
        });
    }

    template <int Term>
    QAIG_INLINE __m256i term(int m, int h) const {
        if constexpr (!kQuads) {
            return sum[m][Term][h];
        } else if constexpr (term_planes(P, Term) == 1) {
            return sum[m][2 * Term][h];
        } else {
            return _mm256_add_epi32(_mm256_slli_epi32(sum[m][0][h], 8), sum[m][1][h]);
        }
    }
};

}  // namespace

void gemv(const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    gemv_with<Accumulators>(l, a, begin, end);
}

}  // namespace qaig::avx2

QAIG_TARGET_END

#endif
