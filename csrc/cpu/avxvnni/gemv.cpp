// gemv with AVX-VNNI.
#include "cpu/avx2/gemv.h"
#include "cpu/avxvnni/dot.h"
#include "cpu/isa.h"

#if defined(__x86_64__)

QAIG_AVX2_BEGIN

namespace qaig::avxvnni {
namespace {

using avx2::kHalves;
using avx2::unroll;

// Sums of R rows of P planes. For one row or two, a quad that begins at bit B of its bytes is not shifted. Such quads
// have sums of their own, which are shifted once per segment.
template <class Dot, int B, int R, int P>
struct Accumulators {
    static constexpr int kPlanes = P, kWords = kUnitQuads;
    static constexpr int kPlaces = R <= 2 && B < 8 ? 2 : 1;
    static constexpr int H = R * P * kPlaces <= 4 ? kHalves : 1;  // as many as have room for sums in the registers
    static constexpr int kBits = B, kHalvesAtOnce = H;
    // With little work per byte, the hardware prefetches earlier than instructions can.
    static constexpr bool kPrefetch = R > 1 || B < 4;
    static constexpr int kSums = R * P * kPlaces * H;
    // Independent sums, which hide the latency of the instruction. 8 bits leave few registers, and memory limits them
    // anyway.
    static constexpr int kChains = kSums <= 2 ? 4 : kSums <= 4 && B < 8 ? 2 : 1;

    __m256i sum[R][P][kPlaces][kChains][H];

    QAIG_INLINE Accumulators() {
        unroll<kSums * kChains>([&](auto i) QAIG_LAMBDA_INLINE { (&sum[0][0][0][0][0])[i] = _mm256_setzero_si256(); });
    }

    static constexpr int place(int q) { return kPlaces == 1 || (B == 3 && q >= 6) ? 0 : q % 2; }

    // Quad Q times 2^(B place(Q)).
    template <int Q>
    static QAIG_INLINE __m256i codes(const uint32_t* words) {
        if constexpr (place(Q) == 0) {
            return avx2::Quads::codes<B, Q>(words);
        } else {
            constexpr int bit = quad_bit(B, Q) - B, mask = ((1 << B) - 1) << B;
            const __m256i word = avx2::load(words + quad_word(B, Q) * kTileRows);
            return _mm256_and_si256(bit > 0 ? _mm256_srli_epi16(word, bit) : word,
                                    _mm256_set1_epi8(static_cast<char>(mask)));
        }
    }

    QAIG_INLINE void add(const uint32_t* words, const uint32_t* x, int64_t plane_stride) {
        unroll<kUnitQuads>([&](auto q) QAIG_LAMBDA_INLINE {
            constexpr int chain = q / kPlaces % kChains;
            __m256i quads[H];
            for (int h = 0; h < H; h++) {
                quads[h] = codes<q>(words + 8 * h);
            }
            for (int m = 0; m < R; m++) {
                for (int p = 0; p < P; p++) {
                    const __m256i quad = _mm256_set1_epi32(static_cast<int>(x[p * plane_stride + q * R + m]));
                    for (int h = 0; h < H; h++) {
                        Dot::add(sum[m][p][place(q)][chain][h], quads[h], quad);
                    }
                }
            }
        });
    }

    QAIG_INLINE __m256i plane(int m, int p, int h) const {
        __m256i total = _mm256_setzero_si256();
        for (int i = 0; i < kPlaces; i++) {
            __m256i at_place = sum[m][p][i][0][h];
            for (int c = 1; c < kChains; c++) {
                at_place = _mm256_add_epi32(at_place, sum[m][p][i][c][h]);
            }
            total = _mm256_add_epi32(total, _mm256_srai_epi32(at_place, B * i));
        }
        return total;
    }

    template <int Term>
    QAIG_INLINE __m256i term(int m, int h) const {
        if constexpr (term_planes(P, Term) == 1) {
            return plane(m, 2 * Term, h);
        } else {
            return _mm256_add_epi32(_mm256_slli_epi32(plane(m, 0, h), 8), plane(m, 1, h));
        }
    }
};

template <int B, int R, int P>
using VexAccumulators = Accumulators<Vex, B, R, P>;
template <int B, int R, int P>
using EvexAccumulators = Accumulators<Evex, B, R, P>;

}  // namespace

void gemv(const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    (has_avx_vnni() ? avx2::gemv_with<VexAccumulators> : avx2::gemv_with<EvexAccumulators>)(l, a, begin, end);
}

}  // namespace qaig::avxvnni

QAIG_TARGET_END

#endif
