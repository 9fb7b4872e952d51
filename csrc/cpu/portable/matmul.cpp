// gemv and gemm in C++ without intrinsics, for any processor.
#include "cpu/activations.h"
#include "cpu/kernels.h"

namespace qaig::portable {
namespace {

constexpr int kSegmentSlots = kSegmentUnits * kUnitSlots;

struct UnpackedSegment {
    int32_t codes[kSegmentSlots][kTileRows];
    float scale[kTileRows];
    int32_t zero[kTileRows];

    UnpackedSegment(const Weight& w, const Tile& tile, int64_t group, const Segment& s) {
        const int bits = kernel_bits(w.shape.bits);
        uint8_t unit[kUnitSlots * kTileRows];
        for (int64_t u = 0; u < s.units; u++) {
            unpack_tile_unit(tile.words + (s.unit + u) * bits * kTileRows, bits, unit);
            for (int i = 0; i < kUnitSlots * kTileRows; i++) {
                codes[u * kUnitSlots + i / kTileRows][i % kTileRows] = unit[i];
            }
        }
        load_floats(tile.scale, w.scale_type, group * kTileRows, kTileRows, scale);
        for (int r = 0; r < kTileRows; r++) {
            zero[r] = tile.zero ? tile.zero[group * kTileRows + r] : 1 << (w.shape.bits - 1);
        }
    }
};

void add_row(const UnpackedSegment& w, const Segment& s, int planes, const uint32_t* x, const float* x_scale,
             const int32_t* x_sum, int64_t rows, float* out) {
    for (int term = 0; term < terms(planes); term++) {
        int32_t sum[kTileRows] = {};
        for (int64_t i = 0; i < s.units * kUnitPairs; i++, x += rows) {
            const int32_t even = static_cast<int16_t>(*x & 0xffff), odd = static_cast<int16_t>(*x >> 16);
            for (int r = 0; r < kTileRows; r++) {
                sum[r] += even * w.codes[2 * i][r] + odd * w.codes[2 * i + 1][r];
            }
        }
        for (int r = 0; r < kTileRows; r++) {
            const int32_t exact = sum[r] - w.zero[r] * x_sum[term * rows];
            out[r] += w.scale[r] * x_scale[term * rows] * static_cast<float>(exact);
        }
    }
}

}  // namespace

void matmul(const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    const Shape& s = l.weight.shape;
    const TileReader reader(l.weight);
    const Buffer<float> out(l.rows * kTileRows);
    for (int64_t t = begin; t < end; t++) {
        const Tile tile = reader(t);
        const int64_t n = t * kTileRows, count = std::min<int64_t>(kTileRows, s.out_features - n);
        std::fill_n(out.data(), l.rows * kTileRows, 0.f);
        for (int64_t i = 0; i < s.segments(); i++) {
            const Segment segment = segment_at(s, i);
            const UnpackedSegment w(l.weight, tile, i / s.segments_per_group(), segment);
            for (int64_t m = 0; m < l.rows; m++) {
                const int64_t b = m / a.batch_rows, r = m % a.batch_rows, planes = a.planes[b];
                const int64_t unit_words = kUnitPairs * terms(static_cast<int>(planes)) * a.batch_rows;
                const int64_t at = b * a.batch_sums + i * kMaxTerms * a.batch_rows + r;
                add_row(w, segment, static_cast<int>(planes),
                        a.words.data() + b * a.batch_words + segment.unit * unit_words + r, a.scales.data() + at,
                        a.sums.data() + at, a.batch_rows, out.data() + m * kTileRows);
            }
        }
        for (int64_t m = 0; m < l.rows; m++) {
            float* y = out.data() + m * kTileRows;
            if (l.bias) {
                for (int64_t r = 0; r < count; r++) {
                    y[r] += l.bias[n + r];
                }
            }
            store_floats(l.y, l.type, m * s.out_features + n, count, y);
        }
    }
}

}  // namespace qaig::portable
