// gemv with AVX-512, for few rows of x: every code is read once from memory, and masked without a shift.
#include "cpu/activations.h"
#include "cpu/avx512/common.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"

#if defined(__x86_64__)

QAIG_AVX512_BEGIN

namespace qaig::avx512 {
namespace {

// A mask gives a quad's codes times 2^bit. Quads that begin at the same bit ("place") share sums, which are shifted
// once per segment. That saves the shift of every word.
constexpr int num_places(int bits) { return bits == 2 ? 4 : bits == 8 ? 1 : 2; }
constexpr int place_of(int bits, int q) {
    return bits == 3 && q >= 6 ? 0 : quad_bit(bits, q) * num_places(bits) / (bits == 3 ? 6 : 8);
}
constexpr int place_bit(int bits, int place) { return bits == 3 ? 3 * place : 8 / num_places(bits) * place; }

template <int B, int Q>
QAIG_INLINE __m512i quad_in_place(const Unit<B>& unit) {
    if constexpr (B == 8 || (B == 3 && Q >= 6)) {
        return unit.template quad<Q>();
    } else {
        constexpr int mask = ((1 << B) - 1) << quad_bit(B, Q);
        return _mm512_and_si512(unit.w[quad_word(B, Q)], _mm512_set1_epi8(static_cast<char>(mask)));
    }
}

// Multiplies R rows of x with the 16 rows of a tile.
template <int B, int R, int P>
void multiply(const Linear& l, const Activations& a, const Tile& tile, __m512* out) {
    constexpr bool kInPlace = R <= 2;
    constexpr int kPlaces = kInPlace ? num_places(B) : 1;
    constexpr int kChains = R * P * kPlaces >= 8 ? 1 : R * P * kPlaces >= 4 ? 2 : R * P * kPlaces >= 2 ? 4 : 8;
    // With little work per byte, the hardware prefetches earlier than instructions can, except on Intel's processors.
    const bool prefetches = R > 1 || is_intel();
    const Shape& s = l.weight.shape;
    const uint32_t* words = tile.words;
    const uint32_t* x = a.words.data();
    const float* x_scale = a.scales.data();
    const int32_t* x_sum = a.sums.data();
    for (int m = 0; m < R; m++) {
        out[m] = _mm512_setzero_ps();
    }
    const int64_t units = s.units_per_group();
    for (int64_t g = 0; g < s.groups(); g++) {
        const __m512 scale = load_scale(tile.scale, l.weight.scale_type, g);
        const __m512i zero = load_zero(tile.zero, s.bits, g);
        for (int64_t u0 = 0; u0 < units; u0 += kSegmentUnits) {
            const int64_t n = std::min<int64_t>(kSegmentUnits, units - u0);
            const int64_t plane = n * kUnitQuads * R;
            __m512i sum[R][P][kPlaces][kChains];
            unroll<R * P * kPlaces * kChains>(
                [&](auto i) QAIG_LAMBDA_INLINE { (&sum[0][0][0][0])[i] = _mm512_setzero_si512(); });
            for (int64_t u = 0; u < n; u++) {
                Unit<B> unit;
                unit.load(words);
                if (prefetches) {
                    for (int i = 0; i < B; i++) {
                        _mm_prefetch(reinterpret_cast<const char*>(words + i * kTileRows) + kPrefetchBytes,
                                     _MM_HINT_T1);
                    }
                }
                words += B * kTileRows;
                unroll<kUnitQuads>([&](auto q) QAIG_LAMBDA_INLINE {
                    const __m512i codes = kInPlace ? quad_in_place<B, q>(unit) : unit.template quad<q>();
                    constexpr int place = kInPlace ? place_of(B, q) : 0;
                    constexpr int chain = (kPlaces == 1 || (B == 3 && q >= 6) ? q : quad_word(B, q)) % kChains;
                    unroll<R * P>([&](auto i) QAIG_LAMBDA_INLINE {
                        constexpr int m = i / P, p = i % P;
                        const __m512i quad = _mm512_set1_epi32(static_cast<int>(x[p * plane + q * R + m]));
                        sum[m][p][place][chain] = _mm512_dpbusd_epi32(sum[m][p][place][chain], codes, quad);
                    });
                });
                x += kUnitQuads * R;
            }
            x += (P - 1) * plane;
            // Indices are constants here, too: a variable index would keep all sums in memory.
            unroll<R>([&](auto m) QAIG_LAMBDA_INLINE {
                __m512i whole[P];
                unroll<P>([&](auto p) QAIG_LAMBDA_INLINE {
                    whole[p] = _mm512_setzero_si512();
                    unroll<kPlaces>([&](auto i) QAIG_LAMBDA_INLINE {
                        __m512i at_place = sum[m][p][i][0];
                        unroll<kChains - 1>([&](auto c) QAIG_LAMBDA_INLINE {
                            at_place = _mm512_add_epi32(at_place, sum[m][p][i][c + 1]);
                        });
                        constexpr int bit = kInPlace ? place_bit(B, i) : 0;
                        whole[p] = _mm512_add_epi32(whole[p], _mm512_srai_epi32(at_place, bit));
                    });
                });
                unroll<terms(P)>([&](auto term) QAIG_LAMBDA_INLINE {
                    __m512i product = whole[term * 2];
                    if constexpr (term_planes(P, term) == 2) {
                        product = _mm512_add_epi32(_mm512_slli_epi32(product, 8), whole[term * 2 + 1]);
                    }
                    const __m512i offset = _mm512_mullo_epi32(zero, _mm512_set1_epi32(x_sum[term * R + m]));
                    const __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(product, offset));
                    const __m512 step = _mm512_mul_ps(scale, _mm512_set1_ps(x_scale[term * R + m]));
                    out[m] = _mm512_fmadd_ps(step, exact, out[m]);
                });
            });
            x_scale += kMaxTerms * R;
            x_sum += kMaxTerms * R;
        }
    }
}

template <int B, int R, int P>
void gemv_tiles(const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    const Shape& s = l.weight.shape;
    const TileReader reader(l.weight);
    for (int64_t t = begin; t < end; t++) {
        __m512 out[R];
        multiply<B, R, P>(l, a, reader(t), out);
        const int64_t n = t * kTileRows;
        const __mmask16 mask = first(s.out_features - n);
        const __m512 bias = l.bias ? _mm512_maskz_loadu_ps(mask, l.bias + n) : _mm512_setzero_ps();
        for (int64_t m = 0; m < std::min<int64_t>(R, l.rows); m++) {
            store(l.y, l.type, m * s.out_features + n, _mm512_add_ps(out[m], bias), mask);
        }
    }
}

using GemvTiles = void (*)(const Linear&, const Activations&, int64_t, int64_t);

template <int B, int R>
GemvTiles gemv_tiles_of(int planes) {
    return planes == 1 ? gemv_tiles<B, R, 1> : planes == 2 ? gemv_tiles<B, R, 2> : gemv_tiles<B, R, 3>;
}

template <int B>
GemvTiles gemv_tiles_of(int64_t rows, int planes) {
    return rows == 1   ? gemv_tiles_of<B, 1>(planes)
           : rows == 2 ? gemv_tiles_of<B, 2>(planes)
                       : gemv_tiles_of<B, 4>(planes);
}

GemvTiles gemv_tiles_of(int bits, int64_t rows, int planes) {
    switch (bits) {
        case 2: return gemv_tiles_of<2>(rows, planes);
        case 3: return gemv_tiles_of<3>(rows, planes);
        case 4: return gemv_tiles_of<4>(rows, planes);
        default: return gemv_tiles_of<8>(rows, planes);
    }
}

}  // namespace

void gemv(const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    gemv_tiles_of(kernel_bits(l.weight.shape.bits), a.batch_rows, a.planes[0])(l, a, begin, end);
}

}  // namespace qaig::avx512

QAIG_TARGET_END

#endif
