// gemm with AVX2: 8-bit products of 2- to 4-bit codes with 8-bit activations, else 16-bit products.
#include "cpu/avx2/gemm.h"

#if defined(__x86_64__)

QAIG_AVX2_BEGIN

namespace qaig::avx2 {
namespace {

// Makes GCC compute the sum here, in a register. Otherwise GCC computes the products of all rows first, and spills sums
// to memory.
QAIG_INLINE void keep_in_register(__m256i& sum) { __asm__("" : "+x"(sum)); }

struct PairProducts : Pairs {
    template <int R>
    static QAIG_INLINE void add(const uint32_t* codes, int64_t units, const uint32_t* x, Accumulators<R>& sums) {
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
    static QAIG_INLINE void add(const uint32_t* codes, int64_t units, const uint32_t* x, Accumulators<R>& sums) {
        for (int64_t u = 0; u < units; u++) {
            Accumulators<R> small;  // 16 bits hold eight sums of two products of at most 15 * 128
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
    (a.layout == ActivationLayout::quads ? gemm_with<QuadProducts> : gemm_with<PairProducts>)(l, a, begin, end);
}

}  // namespace qaig::avx2

QAIG_TARGET_END

#endif
