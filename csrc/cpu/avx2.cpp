// AVX2: 16-bit products of pairs (VPMADDWD), in which neither codes nor activations can overflow.
#include <memory>

#include "activations.h"
#include "kernels.h"
#include "parallel.h"
#include "unroll.h"

#if defined(__x86_64__)

#include <immintrin.h>

QAIG_TARGET_BEGIN("avx2,fma,f16c")

namespace qaig::avx2 {
namespace {

QAIG_DEFINE_UNROLL

constexpr int kHalves = 2;        // a tile's 16 rows are two registers
constexpr int kSegmentPairs = kSegmentUnits * kUnitPairs;
constexpr int64_t kAhead = 8192;  // bytes of weights that are asked for in advance, into the next tiles too

QAIG_INLINE __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

QAIG_INLINE void prefetch(const uint32_t* words, int count) {
    for (int i = 0; i < count; i++) {
        _mm_prefetch(reinterpret_cast<const char*>(words + i * kTileRows) + kAhead, _MM_HINT_T1);
    }
}

// Pair I of half a unit (8 rows) as 16-bit integers.
template <int B, int I>
QAIG_INLINE __m256i pair(const uint32_t* words) {
    constexpr int q = I / 2, byte = 8 * (I % 2);
    if constexpr (B == 3 && q >= 6) {
        const __m256i low = _mm256_srli_epi16(load(words + (q - 6) * kTileRows), 6 + byte);
        const __m256i high = _mm256_srli_epi16(load(words + 2 * kTileRows), q - 2 + byte);
        return _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi16(3)), _mm256_and_si256(high, _mm256_set1_epi16(4)));
    } else {
        constexpr int bit = quad_bit(B, q) + byte;
        __m256i word = load(words + quad_word(B, q) * kTileRows);
        if constexpr (bit > 0) word = _mm256_srli_epi16(word, bit);
        return bit + B == 16 ? word : _mm256_and_si256(word, _mm256_set1_epi16((1 << B) - 1));
    }
}

QAIG_INLINE __m256 load_scale(const void* scale, Scalar type, int64_t at) {
    if (type == Scalar::f32) return _mm256_loadu_ps(static_cast<const float*>(scale) + at);
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(scale) + at));
    if (type == Scalar::f16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

QAIG_INLINE __m256i load_zero(const uint8_t* zero, int bits, int64_t at) {
    if (zero == nullptr) return _mm256_set1_epi32(1 << (bits - 1));
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zero + at)));
}

// Scales and zero points of a tile in one group.
struct Grid {
    __m256 scale[kHalves];
    __m256i zero[kHalves];

    QAIG_INLINE Grid(const Weight& w, const Tile& tile, int64_t group) {
        for (int h = 0; h < kHalves; h++) {
            scale[h] = load_scale(tile.scale, w.scale_type, group * kTileRows + 8 * h);
            zero[h] = load_zero(tile.zero, w.shape.bits, group * kTileRows + 8 * h);
        }
    }

    // The value of integer sums of products with x = x_scale * q, q summing up to x_sum, added to `out`.
    QAIG_INLINE __m256 add(int h, __m256i sum, float x_scale, int32_t x_sum, __m256 out) const {
        const __m256i offset = _mm256_mullo_epi32(zero[h], _mm256_set1_epi32(x_sum));
        const __m256 exact = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, offset));
        return _mm256_fmadd_ps(_mm256_mul_ps(scale[h], _mm256_set1_ps(x_scale)), exact, out);
    }
};

void store_row(const Linear& l, int64_t m, int64_t tile, const float* values) {
    const int64_t n = tile * kTileRows, count = std::min<int64_t>(kTileRows, l.weight.shape.out_features - n);
    float y[kTileRows];
    for (int64_t r = 0; r < count; r++) y[r] = values[r] + (l.bias ? l.bias[n + r] : 0.f);
    store_floats(l.y, l.type, m * l.weight.shape.out_features + n, count, y);
}

// -- few rows: every code is used as it comes

template <int B, int R, int Parts>
void decode_tile(const Linear& l, const Activations& a, int64_t t, const Tile& tile) {
    const Shape& s = l.weight.shape;
    const uint32_t *words = tile.words, *x = a.words.data();
    const float* x_scale = a.scales.data();
    const int32_t* x_sum = a.sums.data();
    __m256 out[R][kHalves];
    for (int i = 0; i < R * kHalves; i++) (&out[0][0])[i] = _mm256_setzero_ps();
    const int64_t units = s.units_per_group();
    for (int64_t g = 0; g < s.groups(); g++) {
        const Grid grid(l.weight, tile, g);
        for (int64_t u0 = 0; u0 < units; u0 += kSegmentUnits) {
            const int64_t n = std::min<int64_t>(kSegmentUnits, units - u0), part_words = n * kUnitPairs * R;
            __m256i sum[R][Parts][kHalves];
            for (int i = 0; i < R * Parts * kHalves; i++) (&sum[0][0][0])[i] = _mm256_setzero_si256();
            for (int64_t u = 0; u < n; u++, words += B * kTileRows, x += kUnitPairs * R) {
                prefetch(words, B);
                unroll<kUnitPairs>([&](auto i) QAIG_LAMBDA_INLINE {
                    const __m256i codes[kHalves] = {pair<B, i>(words), pair<B, i>(words + 8)};
                    for (int m = 0; m < R; m++) {
                        for (int p = 0; p < Parts; p++) {
                            const __m256i both = _mm256_set1_epi32(static_cast<int>(x[p * part_words + i * R + m]));
                            for (int h = 0; h < kHalves; h++) {
                                sum[m][p][h] = _mm256_add_epi32(sum[m][p][h], _mm256_madd_epi16(codes[h], both));
                            }
                        }
                    }
                });
            }
            x += (Parts - 1) * part_words;
            for (int m = 0; m < R; m++) {
                for (int p = 0; p < Parts; p++) {
                    for (int h = 0; h < kHalves; h++) {
                        out[m][h] = grid.add(h, sum[m][p][h], x_scale[p * R + m], x_sum[p * R + m], out[m][h]);
                    }
                }
            }
            x_scale += kMaxParts * R;
            x_sum += kMaxParts * R;
        }
    }
    for (int64_t m = 0; m < std::min<int64_t>(R, l.rows); m++) {
        float y[kTileRows];
        for (int h = 0; h < kHalves; h++) _mm256_storeu_ps(y + 8 * h, out[m][h]);
        store_row(l, m, t, y);
    }
}

using DecodeTile = void (*)(const Linear&, const Activations&, int64_t, const Tile&);

template <int B, int R>
DecodeTile decode_of(int planes) {
    return parts(planes) == 1 ? decode_tile<B, R, 1> : decode_tile<B, R, 2>;
}

template <int B>
DecodeTile decode_of(int64_t rows, int planes) {
    return rows == 1 ? decode_of<B, 1>(planes) : rows == 2 ? decode_of<B, 2>(planes) : decode_of<B, 4>(planes);
}

DecodeTile decode_of(int bits, int64_t rows, int planes) {
    switch (bits) {
        case 2: return decode_of<2>(rows, planes);
        case 3: return decode_of<3>(rows, planes);
        case 4: return decode_of<4>(rows, planes);
        default: return decode_of<8>(rows, planes);
    }
}

// -- many rows: the codes of a tile and a segment are unpacked once and multiplied with every batch

constexpr int64_t kBlockRows = 96;  // rows of x that share unpacked codes

template <int B>
void unpack(const uint32_t* words, int64_t units, uint32_t* codes) {
    for (int64_t u = 0; u < units; u++, words += B * kTileRows) {
        prefetch(words, B);
        unroll<kUnitPairs>([&](auto i) QAIG_LAMBDA_INLINE {
            for (int h = 0; h < kHalves; h++) {
                auto* out = reinterpret_cast<__m256i*>(codes + (u * kUnitPairs + i) * kTileRows + 8 * h);
                _mm256_store_si256(out, pair<B, i>(words + 8 * h));
            }
        });
    }
}

void unpack(int bits, const uint32_t* words, int64_t units, uint32_t* codes) {
    switch (bits) {
        case 2: return unpack<2>(words, units, codes);
        case 3: return unpack<3>(words, units, codes);
        case 4: return unpack<4>(words, units, codes);
        default: return unpack<8>(words, units, codes);
    }
}

// Adds the products of R rows with `pairs` pairs to out [R][16].
template <int R>
__attribute__((noinline)) void multiply(const uint32_t* codes, int64_t pairs, const Grid& grid, const uint32_t* x,
                                        const float* x_scale, const int32_t* x_sum, float* out) {
    __m256i sum[R][kHalves];
    for (int i = 0; i < R * kHalves; i++) (&sum[0][0])[i] = _mm256_setzero_si256();
    for (int64_t i = 0; i < pairs; i++, codes += kTileRows, x += R) {
        const __m256i low = load(codes), high = load(codes + 8);
        for (int m = 0; m < R; m++) {
            const __m256i both = _mm256_set1_epi32(static_cast<int>(x[m]));
            sum[m][0] = _mm256_add_epi32(sum[m][0], _mm256_madd_epi16(low, both));
            sum[m][1] = _mm256_add_epi32(sum[m][1], _mm256_madd_epi16(high, both));
        }
    }
    for (int m = 0; m < R; m++) {
        for (int h = 0; h < kHalves; h++) {
            float* at = out + m * kTileRows + 8 * h;
            _mm256_store_ps(at, grid.add(h, sum[m][h], x_scale[m], x_sum[m], _mm256_load_ps(at)));
        }
    }
}

using Multiply = void (*)(const uint32_t*, int64_t, const Grid&, const uint32_t*, const float*, const int32_t*, float*);

Multiply multiply_of(int64_t rows) {
    switch (rows) {
        case 3: return multiply<3>;
        case 4: return multiply<4>;
        case 5: return multiply<5>;
        default: return multiply<6>;
    }
}

void gemm_tile(const Linear& l, const Activations& a, int64_t t, const Tile& tile, int64_t b0, int64_t b1, float* out) {
    const Shape& s = l.weight.shape;
    const int bits = kernel_bits(s.bits);
    const int64_t rows = a.batch_rows;
    const Multiply multiply = multiply_of(rows);
    alignas(32) uint32_t codes[kSegmentPairs * kTileRows];
    std::fill_n(out, (b1 - b0) * rows * kTileRows, 0.f);
    for (int64_t i = 0; i < s.segments(); i++) {
        const Segment segment = segment_at(s, i);
        const int64_t pairs = segment.units * kUnitPairs;
        unpack(bits, tile.words + segment.unit * bits * kTileRows, segment.units, codes);
        const Grid grid(l.weight, tile, i / s.segments_per_group());
        for (int64_t b = b0; b < b1; b++) {
            const int count = parts(a.planes[b]);
            const uint32_t* x = a.words.data() + b * a.batch_words + segment.unit * kUnitPairs * count * rows;
            for (int part = 0; part < count; part++) {
                const int64_t at = b * a.batch_sums + (i * kMaxParts + part) * rows;
                multiply(codes, pairs, grid, x + part * pairs * rows, a.scales.data() + at, a.sums.data() + at,
                         out + (b - b0) * rows * kTileRows);
            }
        }
    }
    for (int64_t m = b0 * rows; m < std::min(b1 * rows, l.rows); m++) store_row(l, m, t, out + (m - b0 * rows) * kTileRows);
}

}  // namespace

void decode(const Linear& l, const Activations& a) {
    const DecodeTile tile = decode_of(kernel_bits(l.weight.shape.bits), a.batch_rows, a.planes[0]);
    share(l.parallel, l.weight.shape.tiles(), tiles_per_chunk(l.weight.shape), [&] {
        return [&, reader = TileReader(l.weight)](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; t++) tile(l, a, t, reader(t));
        };
    });
}

void gemm(const Linear& l, const Activations& a) {
    const Shape& s = l.weight.shape;
    const int64_t block = std::max<int64_t>(1, kBlockRows / a.batch_rows);
    share(l.parallel, s.tiles(), tiles_per_chunk(s), [&] {
        return [&, reader = std::make_shared<TileReader>(l.weight),
                out = std::make_shared<Buffer<float>>(block * a.batch_rows * kTileRows)](int64_t begin, int64_t end) {
            for (int64_t b = 0; b < a.batches; b += block) {
                for (int64_t t = begin; t < end; t++) {
                    gemm_tile(l, a, t, (*reader)(t), b, std::min(b + block, a.batches), out->data());
                }
            }
        };
    });
}

}  // namespace qaig::avx2

QAIG_TARGET_END

#else  // never called: level.cpp offers these levels on x86-64 only

namespace qaig::avx2 {
void decode(const Linear&, const Activations&) {}
void gemm(const Linear&, const Activations&) {}
}  // namespace qaig::avx2

#endif
