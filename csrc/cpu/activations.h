// Activations as the kernels read them: integers, so that products with the codes are exact.
//
// For each row and segment x = scale * q. The integer q is split into up to three byte planes, which are signed bytes:
// q = 256 (256 q_0 + q_1) + q_2.
//
//   8-bit activations   1 plane, one scale per row, max(|x|, 1e-5) / 127: the quantization that the user chose
//   float16, bfloat16   2 planes, scale a power of two. Values within 2^7 of the segment's largest one keep all 8 bits
//                       of a bfloat16. If most of a segment's values are smaller (outliers), the batch takes 3 planes.
//   float32             3 planes: 24 bits
//
// A kernel sums at most 16 bits of q in one integer. So 3 planes are two terms, 256 q_0 + q_1 and q_2. Each term has
// its own scales and sums. Rows come in batches of R. A batch has one of two layouts, segment by segment:
//
//   quads  [planes][quads of the segment][R]: the bytes of slots 0, 2, 1, 3, for 8-bit products. `layout.h` puts codes
//          into words in the same order.
//   pairs  [terms][pairs of the segment][R]: two neighbouring slots as 16-bit integers, for 16-bit products
//
// For AMX, quads come row by row: [R][planes][quads of the segment]. AMX also multiplies bfloat16 as it is:
//
//   bf16   [units of the row][R][pairs of the unit]: two neighbouring slots, without planes, scales or sums
#pragma once

#include <vector>

#include "cpu/hadamard.h"
#include "cpu/repack.h"
#include "cpu/types.h"

namespace qaig {

constexpr int kMaxBatchRows = 16;  // in every instruction set
constexpr int kMaxPlanes = 3, kMaxTerms = 2, kUnitPairs = kUnitSlots / 2;
constexpr int kQuadWords = kUnitQuads * kMaxPlanes, kPairWords = kUnitPairs * kMaxTerms;  // per row and unit, at most
constexpr int terms(int planes) { return planes == 3 ? 2 : 1; }
constexpr int term_planes(int planes, int term) { return term == 1 || planes == 1 ? 1 : 2; }

// `linear_in_float32` computes a row whose largest absolute value is not finite, or outside of these bounds.
constexpr float kMaxMagnitude = 1e30f, kMinMagnitude = 1e-30f;

// The channels of a segment, and its units.
struct Segment {
    int64_t channel, count, unit, units;
};

inline Segment segment_at(const Shape& s, int64_t i) {
    const int64_t per_group = s.segments_per_group(), in_group = i % per_group * kSegmentUnits;
    const int64_t group = i / per_group, first = in_group * kUnitSlots;
    return {group * s.group_size + first, std::min<int64_t>(kSegmentUnits * kUnitSlots, s.group_size - first),
            group * s.units_per_group() + in_group, std::min<int64_t>(kSegmentUnits, s.units_per_group() - in_group)};
}

enum class ActivationLayout { quads, pairs, bf16 };

constexpr int row_words(ActivationLayout layout) {  // per unit, at most
    return layout == ActivationLayout::quads ? kQuadWords : layout == ActivationLayout::pairs ? kPairWords : kUnitPairs;
}

class Activations {
public:
    // Allocates the buffers, which `quantize` fills. `batch_rows` is R.
    Activations(const Linear& l, int64_t batch_rows, ActivationLayout layout)
        : layout(layout),
          batch_rows(batch_rows),
          batches((l.rows + batch_rows - 1) / batch_rows),
          batch_words(l.weight.shape.units() * row_words(layout) * batch_rows),
          batch_sums(l.weight.shape.segments() * kMaxTerms * batch_rows),
          words(batches * batch_words + kUnitQuads),  // a tile may read one unit too many
          scales(batches * batch_sums),
          sums(batches * batch_sums),
          signs(sign_words(l.rotation, l.weight.shape.in_features)),
          planes(batches),
          skipped(l.rows) {}

    const ActivationLayout layout;
    const int64_t batch_rows, batches, batch_words, batch_sums;
    Buffer<uint32_t> words;             // [batches][batch_words]
    Buffer<float> scales;               // [batches][segments][2 terms][R]
    Buffer<int32_t> sums;               // of q over a segment, [batches][segments][2 terms][R]
    const std::vector<uint64_t> signs;  // of the rotation
    std::vector<uint8_t> planes;        // of each batch
    std::vector<uint8_t> skipped;       // rows that are zeros here, and that `linear_in_float32` computes
};

inline float from_bits(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t to_bits(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}

// The scale of 16-bit activations, a power of two, from the bits of the largest value. That value becomes an integer of
// 15 or 23 bits, or of one bit fewer if the planes cannot hold it.
inline float power_scale(uint32_t largest, int planes) {
    const uint32_t top_bit = planes == 2 ? 14 : 22;
    const float scale = from_bits(((largest >> 23) - top_bit) << 23), most = planes == 2 ? 32639.f : 8355711.f;
    return from_bits(largest) > scale * most ? 2 * scale : scale;
}

// Whether only `linear_in_float32` can compute a row, from the bits of its largest absolute value.
inline bool is_skipped(uint32_t largest, int activation_bits) {
    return largest > to_bits(kMaxMagnitude) ||
           (activation_bits != 8 && largest != 0 && largest < to_bits(kMinMagnitude));
}

}  // namespace qaig
