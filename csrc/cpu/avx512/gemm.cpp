// gemm with AVX-512, for many rows of x. The codes of 32 output channels and one segment are unpacked once, into the L1
// cache, and multiplied by every batch of rows.
#include "cpu/activations.h"
#include "cpu/avx512/common.h"
#include "cpu/kernels.h"

#if defined(__x86_64__)

QAIG_AVX512_BEGIN

namespace qaig::avx512 {
namespace {

constexpr int kPanelTiles = 2;
constexpr int kPanelRows = kPanelTiles * kTileRows;
constexpr int kSegmentQuads = kSegmentUnits * kUnitQuads;
// Rows of x that share an unpacked panel. Their planes stay in the L2 cache.
constexpr int64_t kBlockRows = 64;

struct Panel {
    alignas(64) uint8_t codes[kSegmentQuads][kPanelRows * 4];
    __m512 scale[kPanelTiles];
    __m512i zero[kPanelTiles];  // as pairs of 16 bits: the zero point, and 128 times it
};

// Returns a sum over a segment, negated, as a 16-bit pair (a, b) with the value a + 128 b. A segment has at most 128
// integers of 16 bits, so b fits. Its product with a pair of zero points is one instruction, cheaper than a 32-bit
// product.
int minus_as_pair(int32_t sum) { return (-sum & 127) | static_cast<int>(static_cast<uint32_t>(-sum >> 7) << 16); }

template <int B>
void unpack(const uint32_t* words, int64_t units, uint8_t* codes) {
    for (int64_t u = 0; u < units; u++) {
        Unit<B> unit;
        unit.load(words + u * B * kTileRows);
        for (int i = 0; i < B; i++) {
            _mm_prefetch(reinterpret_cast<const char*>(words + (u * B + i) * kTileRows) + kPrefetchBytes, _MM_HINT_T1);
        }
        unroll<kUnitQuads>([&](auto q) QAIG_LAMBDA_INLINE {
            _mm512_store_si512(codes + (u * kUnitQuads + q) * kPanelRows * 4, unit.template quad<q>());
        });
    }
}

void unpack(int bits, const uint32_t* words, int64_t units, uint8_t* codes) {
    switch (bits) {
        case 2: return unpack<2>(words, units, codes);
        case 3: return unpack<3>(words, units, codes);
        case 4: return unpack<4>(words, units, codes);
        default: return unpack<8>(words, units, codes);
    }
}

// Keeps the sum in one register until here. Otherwise GCC copies it between registers within the loop.
QAIG_INLINE void keep_in_register(__m512i& sum) { __asm__("" : "+v"(sum)); }

// Adds the products of R rows with a panel of `quads` quads to out [R][32].
template <int R, int P>
__attribute__((noinline)) void multiply(const Panel& panel, int64_t quads, const uint32_t* x, const float* x_scale,
                                        const int32_t* x_sum, float* out) {
    const __m512 scale[kPanelTiles] = {panel.scale[0], panel.scale[1]};
    const __m512i zero[kPanelTiles] = {panel.zero[0], panel.zero[1]};
    for (int term = 0; term < terms(P); term++) {
        __m512i sum[R][kPanelTiles];
        for (int m = 0; m < R; m++) {
            for (int c = 0; c < kPanelTiles; c++) {
                sum[m][c] = _mm512_setzero_si512();
            }
        }
        for (int p = 0; p < term_planes(P, term); p++) {
            if (p == 1) {
                for (int m = 0; m < R; m++) {
                    for (int c = 0; c < kPanelTiles; c++) {
                        sum[m][c] = _mm512_slli_epi32(sum[m][c], 8);
                    }
                }
            }
            for (int64_t q = 0; q < quads; q++, x += R) {
                const __m512i codes0 = _mm512_load_si512(panel.codes[q]),
                              codes1 = _mm512_load_si512(panel.codes[q] + 64);
                for (int m = 0; m < R; m++) {
                    const __m512i quad = _mm512_set1_epi32(static_cast<int>(x[m]));
                    sum[m][0] = _mm512_dpbusd_epi32(sum[m][0], codes0, quad);
                    sum[m][1] = _mm512_dpbusd_epi32(sum[m][1], codes1, quad);
                }
            }
        }
        unroll<R>([&](auto m) QAIG_LAMBDA_INLINE {
            const __m512i minus = _mm512_set1_epi32(minus_as_pair(x_sum[term * R + m]));
            const __m512 step = _mm512_set1_ps(x_scale[term * R + m]);
            unroll<kPanelTiles>([&](auto c) QAIG_LAMBDA_INLINE {
                keep_in_register(sum[m][c]);
                const __m512 exact = _mm512_cvtepi32_ps(_mm512_dpwssd_epi32(sum[m][c], zero[c], minus));
                float* at = out + m * kPanelRows + c * kTileRows;
                _mm512_store_ps(at, _mm512_fmadd_ps(_mm512_mul_ps(scale[c], step), exact, _mm512_load_ps(at)));
            });
        });
    }
}

using Multiply = void (*)(const Panel&, int64_t, const uint32_t*, const float*, const int32_t*, float*);

template <int R>
Multiply multiply_of(int planes) {
    return planes == 1 ? multiply<R, 1> : planes == 2 ? multiply<R, 2> : multiply<R, 3>;
}

Multiply multiply_of(int64_t rows, int planes) {
    switch (rows) {
        case 5: return multiply_of<5>(planes);
        case 6: return multiply_of<6>(planes);
        case 7: return multiply_of<7>(planes);
        default: return multiply_of<8>(planes);
    }
}

// Computes the output channels of one or two tiles [t, end), for the batches [b0, b1).
void panel_rows(const Linear& l, const Activations& a, const TileReader (&readers)[kPanelTiles], int64_t t, int64_t end,
                int64_t b0, int64_t b1, float* out) {
    const Shape& s = l.weight.shape;
    const int bits = kernel_bits(s.bits);
    const int64_t rows = a.batch_rows, tiles = end - t;
    Tile tile[kPanelTiles];
    for (int c = 0; c < tiles; c++) {
        tile[c] = readers[c](t + c);
    }
    Panel panel;
    if (tiles < kPanelTiles) {
        std::fill_n(&panel.codes[0][0], sizeof(panel.codes), uint8_t{0});
        panel.scale[1] = _mm512_setzero_ps();
        panel.zero[1] = _mm512_setzero_si512();
    }
    std::fill_n(out, (b1 - b0) * rows * kPanelRows, 0.f);
    for (int64_t i = 0; i < s.segments(); i++) {
        const Segment segment = segment_at(s, i);
        const int64_t group = i / s.segments_per_group();
        for (int c = 0; c < tiles; c++) {
            unpack(bits, tile[c].words + segment.unit * bits * kTileRows, segment.units, panel.codes[0] + c * 64);
            panel.scale[c] = load_scale(tile[c].scale, l.weight.scale_type, group);
            const __m512i zero = load_zero(tile[c].zero, s.bits, group);
            panel.zero[c] = _mm512_or_si512(zero, _mm512_slli_epi32(zero, 16 + 7));
        }
        for (int64_t b = b0; b < b1; b++) {
            const int planes = a.planes[b];
            const int64_t at = b * a.batch_sums + i * kMaxTerms * rows;
            multiply_of(rows, planes)(panel, segment.units * kUnitQuads,
                                      a.words.data() + b * a.batch_words + segment.unit * kUnitQuads * planes * rows,
                                      a.scales.data() + at, a.sums.data() + at, out + (b - b0) * rows * kPanelRows);
        }
    }
    for (int64_t m = b0 * rows; m < std::min(b1 * rows, l.rows); m++) {
        for (int c = 0; c < tiles; c++) {
            const int64_t n = (t + c) * kTileRows;
            const __mmask16 mask = first(s.out_features - n);
            const __m512 bias = l.bias ? _mm512_maskz_loadu_ps(mask, l.bias + n) : _mm512_setzero_ps();
            const __m512 y = _mm512_load_ps(out + (m - b0 * rows) * kPanelRows + c * kTileRows);
            store(l.y, l.type, m * s.out_features + n, _mm512_add_ps(y, bias), mask);
        }
    }
}

}  // namespace

void gemm(const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    const int64_t block = std::max<int64_t>(1, kBlockRows / a.batch_rows);
    const TileReader readers[kPanelTiles] = {TileReader(l.weight), TileReader(l.weight)};
    const Buffer<float> out(block * a.batch_rows * kPanelRows);
    for (int64_t b = 0; b < a.batches; b += block) {
        for (int64_t t = begin; t < end; t += kPanelTiles) {
            panel_rows(l, a, readers, t, std::min(t + kPanelTiles, end), b, std::min(b + block, a.batches), out.data());
        }
    }
}

}  // namespace qaig::avx512

QAIG_TARGET_END

#endif
