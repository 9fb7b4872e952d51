// gemm with 256-bit registers, for many rows of x. The codes of a tile and a segment are unpacked once, into the L1
// cache, and multiplied by every batch of rows.
//
// `Products` derives from Pairs or Quads, which say how codes and x are stored, and has
//
//   template <int R> static void add(const uint32_t* codes, int64_t units, const uint32_t* x, Accumulators<R>& sums)
//                                                  adds the products of R rows of one plane with a segment
#pragma once

#include "cpu/avx2/common.h"

#if defined(__x86_64__)

QAIG_AVX2_BEGIN

namespace qaig::avx2 {

constexpr int kSegmentWords = kSegmentUnits * kUnitPairs * kTileRows;
constexpr int64_t kBlockRows = 96;  // rows of x that share unpacked codes

template <class Codes, int B>
void unpack(const uint32_t* words, int64_t units, uint32_t* codes) {
    for (int64_t u = 0; u < units; u++, words += B * kTileRows) {
        prefetch(words, B);
        unroll<Codes::kPerUnit>([&](auto i) QAIG_LAMBDA_INLINE {
            for (int h = 0; h < kHalves; h++) {
                auto* out = reinterpret_cast<__m256i*>(codes + (u * Codes::kPerUnit + i) * kTileRows + 8 * h);
                _mm256_store_si256(out, Codes::template codes<B, i>(words + 8 * h));
            }
        });
    }
}

template <class Codes>
void unpack(int bits, const uint32_t* words, int64_t units, uint32_t* codes) {
    switch (bits) {
        case 2: return unpack<Codes, 2>(words, units, codes);
        case 3: return unpack<Codes, 3>(words, units, codes);
        case 4: return unpack<Codes, 4>(words, units, codes);
        default: return unpack<Codes, 8>(words, units, codes);
    }
}

// Sums of R rows of x by the 16 rows of a tile. All indices are constants: otherwise GCC keeps the array in memory.
template <int R>
struct Accumulators {
    __m256i at[R][kHalves];

    QAIG_INLINE Accumulators() {
        each([](auto, auto, __m256i& sum) QAIG_LAMBDA_INLINE { sum = _mm256_setzero_si256(); });
    }

    template <class F>
    QAIG_INLINE void each(F&& f) {
        unroll<R>([&](auto m)
                      QAIG_LAMBDA_INLINE { unroll<kHalves>([&](auto h) QAIG_LAMBDA_INLINE { f(m, h, at[m][h]); }); });
    }
};

// Adds the products of R rows with one segment to out [R][16].
template <class Products, int R>
__attribute__((noinline)) void add_rows(const uint32_t* codes, int64_t units, int planes, const QParams& qparams,
                                        const uint32_t* x, const float* x_scale, const int32_t* x_sum, float* out) {
    Accumulators<R> sums;
    for (int p = 0; p < planes; p++, x += units * Products::kPerUnit * R) {
        if (p == 1) {
            sums.each([](auto, auto, __m256i& sum) QAIG_LAMBDA_INLINE { sum = _mm256_slli_epi32(sum, 8); });
        }
        Products::add(codes, units, x, sums);
    }
    sums.each([&](auto m, auto h, __m256i& sum) QAIG_LAMBDA_INLINE {
        float* at = out + m * kTileRows + 8 * h;
        _mm256_store_ps(at, qparams.add(h, sum, x_scale[m], x_sum[m], _mm256_load_ps(at)));
    });
}

using AddRows = void (*)(const uint32_t*, int64_t, int, const QParams&, const uint32_t*, const float*, const int32_t*,
                         float*);

template <class Products>
AddRows add_rows_of(int64_t rows) {
    switch (rows) {
        case 3: return add_rows<Products, 3>;
        case 4: return add_rows<Products, 4>;
        case 5: return add_rows<Products, 5>;
        default: return add_rows<Products, 6>;
    }
}

template <class Products>
void gemm_tile(const Linear& l, const Activations& a, int64_t t, const Tile& tile, int64_t b0, int64_t b1, float* out) {
    const Shape& s = l.weight.shape;
    const int bits = kernel_bits(s.bits);
    const int64_t rows = a.batch_rows;
    const AddRows add_rows = add_rows_of<Products>(rows);
    alignas(32) uint32_t codes[kSegmentWords];
    std::fill_n(out, (b1 - b0) * rows * kTileRows, 0.f);
    for (int64_t i = 0; i < s.segments(); i++) {
        const Segment segment = segment_at(s, i);
        const int64_t plane_words = segment.units * Products::kPerUnit * rows;
        unpack<Products>(bits, tile.words + segment.unit * bits * kTileRows, segment.units, codes);
        const QParams qparams(l.weight, tile, i / s.segments_per_group());
        for (int64_t b = b0; b < b1; b++) {
            const int all_planes = a.layout == ActivationLayout::quads ? a.planes[b] : terms(a.planes[b]);
            const uint32_t* x =
                a.words.data() + b * a.batch_words + segment.unit * Products::kPerUnit * all_planes * rows;
            for (int term = 0; term < terms(a.planes[b]); term++) {
                const int planes = a.layout == ActivationLayout::quads ? term_planes(a.planes[b], term) : 1;
                const int64_t at = b * a.batch_sums + (i * kMaxTerms + term) * rows;
                add_rows(codes, segment.units, planes, qparams, x, a.scales.data() + at, a.sums.data() + at,
                         out + (b - b0) * rows * kTileRows);
                x += planes * plane_words;
            }
        }
    }
    for (int64_t m = b0 * rows; m < std::min(b1 * rows, l.rows); m++) {
        store_row(l, m, t, out + (m - b0 * rows) * kTileRows);
    }
}

template <class Products>
void gemm_with(const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    const int64_t block = std::max<int64_t>(1, kBlockRows / a.batch_rows);
    const TileReader reader(l.weight);
    const Buffer<float> out(block * a.batch_rows * kTileRows);
    for (int64_t b = 0; b < a.batches; b += block) {
        for (int64_t t = begin; t < end; t++) {
            gemm_tile<Products>(l, a, t, reader(t), b, std::min(b + block, a.batches), out.data());
        }
    }
}

}  // namespace qaig::avx2

QAIG_TARGET_END

#endif
