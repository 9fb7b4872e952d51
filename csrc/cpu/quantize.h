// Quantizes x to integers: the loops that all instruction sets share.
#pragma once

#include <vector>

#include "cpu/activations.h"

namespace qaig {

// Sums of a row's integers over a segment, for both terms.
struct TermSums {
    int32_t first, second;
};

constexpr int kRowWords = kSegmentUnits * std::max(kQuadWords, kPairWords);  // of a row and segment, at most

// Interleaves rows word by word, for `Values` without a faster way.
struct WordByWord {
    static void interleave(const uint32_t (&rows)[kMaxBatchRows][kRowWords], int64_t count, int64_t R, uint32_t* out) {
        for (int64_t j = 0; j < count; j++) {
            for (int64_t m = 0; m < R; m++) {
                *out++ = rows[m][j];
            }
        }
    }
};

// The same values, with the rows one after the other.
template <class Values>
struct RowByRow : Values {
    using Values::Values;

    static void interleave(const uint32_t (&rows)[kMaxBatchRows][kRowWords], int64_t count, int64_t R, uint32_t* out) {
        for (int64_t m = 0; m < R; m++) {
            out = std::copy_n(rows[m], count, out);
        }
    }
};

// Fills the batches [begin, end) of `a`. Values holds one row of one segment in an instruction set's registers:
//
//   Values(const Linear&, int64_t row, const Segment&)
//   uint32_t absmax_bits() const              bits of the largest absolute value; infinity and NaN exceed all others
//   bool has_outliers(uint32_t largest) const whether more than half of the values are below 2^-7 of the largest: two
//                                             planes would give them fewer bits than bfloat16 has
//   TermSums quantize_to(uint32_t* out, bool quads, int planes, float scale) const
//                                             writes its integers as for a batch of one row
//
// Values also rotates a whole row to float32, and interleaves a batch of R rows of `count` words each:
//
//   static void rotate(const Linear&, int64_t row, const uint64_t* signs, float* out)
//   static void interleave(const uint32_t (&rows)[kMaxBatchRows][kRowWords], int64_t count, int64_t R, uint32_t* out)
template <class Values>
void quantize_with(const Linear& l, Activations& a, int64_t begin, int64_t end) {
    const Shape& shape = l.weight.shape;
    const auto quantize_batch = [&](int64_t batch, float* rotated) {
        const int64_t R = a.batch_rows, row0 = batch * R, rows = std::min(R, l.rows - row0);
        Linear from = l;
        if (l.rotation.block) {
            for (int64_t m = 0; m < rows; m++) {
                Values::rotate(l, row0 + m, a.signs.data(), rotated + m * shape.in_features);
            }
            from.x = rotated;
            from.type = Scalar::f32;
        }
        const int64_t from_row = l.rotation.block ? 0 : row0;
        const auto sums_at = [&](int64_t m, int64_t i) { return batch * a.batch_sums + i * kMaxTerms * R + m; };
        std::vector<float> scale8(rows);
        int planes = l.activation_bits == 8 ? 1 : l.type == Scalar::f32 ? 3 : 2;
        for (int64_t m = 0; m < rows; m++) {
            uint32_t largest = 0;
            for (int64_t i = 0; i < shape.segments(); i++) {
                const Values values(from, from_row + m, segment_at(shape, i));
                const uint32_t most = values.absmax_bits();
                largest = std::max(largest, most);
                if (planes == 2 && values.has_outliers(most)) {
                    planes = 3;
                }
                a.scales[sums_at(m, i)] = from_bits(most);  // until the scale is known
            }
            a.skipped[row0 + m] = is_skipped(largest, l.activation_bits);
            scale8[m] = std::max(from_bits(largest), 1e-5f) / 127;
        }
        a.planes[batch] = static_cast<uint8_t>(planes);
        const bool quads = a.layout == ActivationLayout::quads;
        const int per_unit = quads ? kUnitQuads : kUnitPairs, count = quads ? planes : terms(planes);
        alignas(64) uint32_t words[kMaxBatchRows][kRowWords];
        for (int64_t i = 0; i < shape.segments(); i++) {
            const Segment s = segment_at(shape, i);
            const int64_t size = count * s.units * per_unit;
            uint32_t* out = a.words.data() + batch * a.batch_words + s.unit * per_unit * count * R;
            for (int64_t m = 0; m < R; m++) {
                const int64_t at = sums_at(m, i);
                uint32_t* row = R == 1 ? out : words[m];
                float scale = 0;
                TermSums sums = {0, 0};
                if (m < rows && !a.skipped[row0 + m]) {
                    const float most = a.scales[at];
                    scale = planes == 1 ? scale8[m] : most < kMinMagnitude ? 0 : power_scale(to_bits(most), planes);
                }
                if (scale != 0) {
                    sums = Values(from, from_row + m, s).quantize_to(row, quads, planes, scale);
                } else {
                    std::fill_n(row, size, 0u);
                }
                a.scales[at] = planes == 3 ? 256 * scale : scale;
                a.scales[at + R] = scale;
                a.sums[at] = sums.first;
                a.sums[at + R] = sums.second;
            }
            if (R > 1) {
                Values::interleave(words, size, R, out);
            }
        }
    };
    const Buffer<float> rotated(l.rotation.block ? a.batch_rows * shape.in_features : 0);
    for (int64_t batch = begin; batch < end; batch++) {
        quantize_batch(batch, rotated.data());
    }
}

}  // namespace qaig
