// gemm with AVX2: products of bytes where both sides are small, else of 16-bit integers.
#include "cpu/avx2/gemm.h"

#if defined(__x86_64__)

QAIG_AVX2_BEGIN

namespace qaig::avx2 {
namespace {

// Makes GCC compute the sum here, in a register. Without it GCC computes the products of all rows first, and runs out of
// registers for the sums.
QAIG_INLINE void keep_in_register(__m256i& sum) { __asm__("" : "+x"(sum)); }

struct PairProducts : Pairs {
    template <int R>
    static QAIG_INLINE void add(const uint32_t* codes, int64_t units, const uint32_t* x, Sums<R>& sums) {
        for (int64_t i = 0; i < units * kUnitPairs; i++, codes += kTileRows, x += R) {
            const __m256i pairs[kHalves] = {load(codes), load(codes + 8)};
            sums.each([&](auto m, auto h, __m256i& sum) QAIG_LAMBDA_INLINE {
                const __m256i product = _mm256_madd_epi16(pairs[h], _mm256_set1_epi32(static_cast<int>(x[m])));
                sum = _mm256_add_epi32(sum, product);
                keep_in_register(sum);
            });
        }
    }
};

struct QuadProducts : Quads {
    template <int R>
    static QAIG_INLINE void add(const uint32_t* codes, int64_t units, const uint32_t* x, Sums<R>& sums) {
        for (int64_t u = 0; u < units; u++) {
            Sums<R> small;  // eight sums of two products of at most 15 * 128 fit in 16 bits
            for (int q = 0; q < kUnitQuads; q++, codes += kTileRows, x += R) {
                const __m256i quads[kHalves] = {load(codes), load(codes + 8)};
                small.each([&](auto m, auto h, __m256i& sum) QAIG_LAMBDA_INLINE {
                    const __m256i products = _mm256_maddubs_epi16(quads[h], _mm256_set1_epi32(static_cast<int>(x[m])));
                    sum = _mm256_add_epi16(sum, products);
                    keep_in_register(sum);
                });
            }
            sums.each([&](auto m, auto h, __m256i& sum) QAIG_LAMBDA_INLINE {
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(small.at[m][h], _mm256_set1_epi16(1)));
            });
        }
    }
};

}  // namespace

void gemm(const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    (a.form == Form::quads ? gemm_with<QuadProducts> : gemm_with<PairProducts>)(l, a, begin, end);
}

}  // namespace qaig::avx2

QAIG_TARGET_END

#endif
