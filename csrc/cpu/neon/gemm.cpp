// The loops over tiles, segments and batches of a gemm with NEON.
#include "cpu/neon/gemm.h"

#if defined(QAIG_NEON)

namespace qaig::neon {
namespace {

constexpr int64_t kBlockRows = 96;  // rows of x that share unpacked codes

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
        const Grid grid(l.weight, tile, i / s.segments_per_group());
        for (int64_t b = b0; b < b1; b++) {
            const int planes = a.planes[b];
            const int64_t at = b * a.batch_sums + i * kMaxParts * rows;
            kernels.add_rows(rows, planes)(
                codes, segment.units, grid,
                a.words.data() + b * a.batch_words + segment.unit * kUnitQuads * planes * rows, a.scales.data() + at,
                a.sums.data() + at, out + (b - b0) * rows * kTileRows);
        }
    }
    for (int64_t m = b0 * rows; m < std::min(b1 * rows, l.rows); m++) {
        store_row(l, m, t, out + (m - b0 * rows) * kTileRows);
    }
}

}  // namespace

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
