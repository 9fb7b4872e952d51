// gemv with AVX2.
//
// Codes of 2 to 4 bits take 8-bit products (VPMADDUBSW): two of them, and eight such sums, fit in 16 bits. Codes of 8
// bits take 16-bit products (VPMADDWD).
#include "cpu/avx2/gemv.h"

#if defined(__x86_64__)

QAIG_AVX2_BEGIN

namespace qaig::avx2 {
namespace {

template <int B, int R, int P>
struct Sums {
    static constexpr bool kQuads = B <= 4;
    static constexpr int kPlanes = kQuads ? P : parts(P);  // of quads, or parts of pairs
    static constexpr int kWords = kQuads ? kUnitQuads : kUnitPairs;
    static constexpr int H = R * kPlanes <= 3 ? kHalves : 1;  // whose sums fit in the registers
    static constexpr int kBits = B, kHalvesAtOnce = H;
    static constexpr bool kPrefetch = true;

    __m256i sum[R][kPlanes][H];

    QAIG_INLINE Sums() { clear(sum); }

    static QAIG_INLINE void clear(__m256i (&all)[R][kPlanes][H]) {
        unroll<R * kPlanes * H>([&](auto i) QAIG_LAMBDA_INLINE { (&all[0][0][0])[i] = _mm256_setzero_si256(); });
    }

    QAIG_INLINE void add(const uint32_t* words, const uint32_t* x, int64_t apart) {
        if constexpr (kQuads) {
            add_quads(words, x, apart);
        } else {
            add_pairs(words, x, apart);
        }
    }

    QAIG_INLINE void add_quads(const uint32_t* words, const uint32_t* x, int64_t apart) {
        __m256i small[R][kPlanes][H];
        clear(small);
        unroll<kUnitQuads>([&](auto q) QAIG_LAMBDA_INLINE {
            __m256i codes[H];
            for (int h = 0; h < H; h++) {
                codes[h] = Quads::codes<B, q>(words + 8 * h);
            }
            for (int m = 0; m < R; m++) {
                for (int p = 0; p < kPlanes; p++) {
                    const __m256i quad = _mm256_set1_epi32(static_cast<int>(x[p * apart + q * R + m]));
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

    QAIG_INLINE void add_pairs(const uint32_t* words, const uint32_t* x, int64_t apart) {
        unroll<kUnitPairs>([&](auto i) QAIG_LAMBDA_INLINE {
            __m256i codes[H];
            for (int h = 0; h < H; h++) {
                codes[h] = Pairs::codes<B, i>(words + 8 * h);
            }
            for (int m = 0; m < R; m++) {
                for (int p = 0; p < kPlanes; p++) {
                    const __m256i pair = _mm256_set1_epi32(static_cast<int>(x[p * apart + i * R + m]));
                    for (int h = 0; h < H; h++) {
                        sum[m][p][h] = _mm256_add_epi32(sum[m][p][h], _mm256_madd_epi16(codes[h], pair));
                    }
                }
            }
        });
    }

    template <int Part>
    QAIG_INLINE __m256i part(int m, int h) const {
        if constexpr (!kQuads) {
            return sum[m][Part][h];
        } else if constexpr (part_planes(P, Part) == 1) {
            return sum[m][2 * Part][h];
        } else {
            return _mm256_add_epi32(_mm256_slli_epi32(sum[m][0][h], 8), sum[m][1][h]);
        }
    }
};

}  // namespace

void gemv(const Linear& l, const Activations& a, int64_t begin, int64_t end) { gemv_with<Sums>(l, a, begin, end); }

}  // namespace qaig::avx2

QAIG_TARGET_END

#endif
