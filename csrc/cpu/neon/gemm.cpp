// The loops of a gemm with NEON over tiles, segments and batches, and the unpacking of a segment.
#include "cpu/neon/gemm.h"

#if defined(QAIG_NEON)

namespace qaig::neon {
namespace {

QAIG_DEFINE_UNROLL

constexpr int64_t kBlockRows = 96;  // rows of x that share unpacked codes

struct Quads {
    template <int B>
    static void unpack_unit(const uint32_t* words, int8_t* __restrict codes) {
        unroll<kUnitQuads>([&](auto q) QAIG_LAMBDA_INLINE {
            for (int h = 0; h < kRegisters; h++) {
                const int8x16_t four_rows = quad<B, q, false>(words + kRegisterRows * h);
                vst1q_s8(codes + q * kQuadBytes + 16 * h,
                         four_rows);  // a variable: in Clang vst1q_s8 is a macro, which commas of templates break
            }
        });
    }
};

struct QuadPairs {
    template <int B>
    static void unpack_unit(const uint32_t* words, int8_t* __restrict codes) {
        unroll<kUnitQuadPairs>([&](auto i) QAIG_LAMBDA_INLINE {
            for (int h = 0; h < kRegisters; h++) {
                const int32x4_t first = vreinterpretq_s32_s8(quad<B, 2 * i, false>(words + kRegisterRows * h));
                const int32x4_t second = vreinterpretq_s32_s8(quad<B, 2 * i + 1, false>(words + kRegisterRows * h));
                int8_t* to = codes + i * kQuadPairBytes + 32 * h;
                vst1q_s8(to, vreinterpretq_s8_s32(vzip1q_s32(first, second)));
                vst1q_s8(to + 16, vreinterpretq_s8_s32(vzip2q_s32(first, second)));
            }
        });
    }
};

template <class Order, int B>
void unpack(const uint32_t* words, int64_t units, int8_t* codes) {
    for (int64_t u = 0; u < units; u++, words += B * kTileRows, codes += kUnitQuads * kQuadBytes) {
        Order::template unpack_unit<B>(words, codes);
    }
}

template <class Order>
void unpack_any(int bits, const uint32_t* words, int64_t units, int8_t* codes) {
    switch (bits) {
        case 2: return unpack<Order, 2>(words, units, codes);
        case 3: return unpack<Order, 3>(words, units, codes);
        case 4: return unpack<Order, 4>(words, units, codes);
        default: return unpack<Order, 8>(words, units, codes);
    }
}

void gemm_tile(const Gemm& kernels, const Linear& l, const Activations& a, int64_t t, const Tile& tile, int64_t b0,
               int64_t b1, float* out) {
    const Shape& s = l.weight.shape;
    const int bits = kernel_bits(s.bits);
    const int64_t rows = a.batch_rows;
    alignas(64) int8_t codes[kSegmentUnits * kUnitQuads * kQuadBytes];
    std::fill_n(out, (b1 - b0) * rows * kTileRows, 0.f);
    for (int64_t i = 0; i < s.segments(); i++) {
        const Segment segment = segment_at(s, i);
        kernels.unpack(bits, tile.words + segment.unit * bits * kTileRows, segment.units, codes);
        const QParams qparams(l.weight, tile, i / s.segments_per_group());
        for (int64_t b = b0; b < b1; b++) {
            const int planes = a.planes[b];
            const int64_t at = b * a.batch_sums + i * kMaxTerms * rows;
            kernels.add_rows(rows, planes)(
                codes, segment.units, qparams,
                a.words.data() + b * a.batch_words + segment.unit * kUnitQuads * planes * rows, a.scales.data() + at,
                a.sums.data() + at, out + (b - b0) * rows * kTileRows);
        }
    }
    for (int64_t m = b0 * rows; m < std::min(b1 * rows, l.rows); m++) {
        store_row(l, m, t, out + (m - b0 * rows) * kTileRows);
    }
}

}  // namespace

void unpack_quads(int bits, const uint32_t* words, int64_t units, int8_t* codes) {
    unpack_any<Quads>(bits, words, units, codes);
}

void unpack_quad_pairs(int bits, const uint32_t* words, int64_t units, int8_t* codes) {
    unpack_any<QuadPairs>(bits, words, units, codes);
}

void gemm_with(const Gemm& kernels, const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    const int64_t block = std::max<int64_t>(1, kBlockRows / a.batch_rows);
    const TileReader reader(l.weight);
    const Buffer<float> out(block * a.batch_rows * kTileRows);
    for (int64_t b = 0; b < a.batches; b += block) {
        for (int64_t t = begin; t < end; t++) {
            gemm_tile(kernels, l, a, t, reader(t), b, std::min(b + block, a.batches), out.data());
        }
    }
}

}  // namespace qaig::neon

#endif
