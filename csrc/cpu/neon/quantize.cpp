// Quantizes x with NEON, to quads of bytes.
#include "cpu/neon/common.h"
#include "cpu/quantize.h"
#include "cpu/hadamard.h"

#if defined(QAIG_NEON)

namespace qaig::neon {
namespace {

constexpr int kVectors = kSegmentUnits * kUnitSlots / 4;  // float32 vectors in a segment

QAIG_INLINE uint32x4_t magnitude(float32x4_t x) { return vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x7fffffff)); }

// Removes the low byte, which is signed: (q - low byte) / 256.
QAIG_INLINE int32x4_t without_low_byte(int32x4_t q) { return vrshrq_n_s32(q, 8); }

// Stores the low bytes of 16 integers: four quads, in the byte order of a unit.
QAIG_INLINE void store_quads(const int32x4_t (&q)[4], uint32_t* out) {
    static constexpr uint8_t kOrder[16] = {0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15};
    const int16x8_t halves[2] = {vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1])),
                                 vcombine_s16(vmovn_s32(q[2]), vmovn_s32(q[3]))};
    const int8x16_t bytes = vcombine_s8(vmovn_s16(halves[0]), vmovn_s16(halves[1]));
    vst1q_u32(out, vreinterpretq_u32_s8(vqtbl1q_s8(bytes, vld1q_u8(kOrder))));
}

// Loads 16 values from element `at` on. Vector i has values i, 4 + i, 8 + i and 12 + i.
QAIG_INLINE float32x4x4_t load_strided(const void* p, Scalar type, int64_t at) {
    if (type == Scalar::f32) {
        return vld4q_f32(static_cast<const float*>(p) + at);
    }
    const uint16x4x4_t half = vld4_u16(static_cast<const uint16_t*>(p) + at);
    float32x4x4_t x;
    for (int i = 0; i < 4; i++) {
        x.val[i] = type == Scalar::f16 ? vcvt_f32_f16(vreinterpret_f16_u16(half.val[i]))
                                       : vreinterpretq_f32_u32(vshll_n_u16(half.val[i], 16));
    }
    return x;
}

// (a, b) to (a + b, a - b)
QAIG_INLINE void butterfly(float32x4_t& a, float32x4_t& b) {
    const float32x4_t sum = vaddq_f32(a, b);
    b = vsubq_f32(a, b);
    a = sum;
}

// Rotates the block that begins at element `at` of x, which is channel k.
void rotate_block(const Linear& l, int64_t at, int64_t k, const uint64_t* signs, float* out) {
    static constexpr int32_t kTopBit[4] = {31, 27, 23, 19};  // shifts that move bits 0, 4, 8 and 12 to the top
    const int64_t block = l.rotation.block;
    for (int64_t i = 0; i < block; i += 16) {
        float32x4x4_t x = load_strided(l.x, l.type, at + i);
        const uint32x4_t bits = vdupq_n_u32(signs_at(signs, k + i, 16));
        for (int j = 0; j < 4; j++) {
            const uint32x4_t top = vshlq_u32(bits, vsubq_s32(vld1q_s32(kTopBit), vdupq_n_s32(j)));
            const uint32x4_t minus = vandq_u32(top, vdupq_n_u32(0x80000000));
            x.val[j] = vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x.val[j]), minus));
        }
        butterfly(x.val[0], x.val[1]);
        butterfly(x.val[2], x.val[3]);
        butterfly(x.val[0], x.val[2]);
        butterfly(x.val[1], x.val[3]);
        vst4q_f32(out + i, x);
    }
    for (int64_t distance = 4; distance < block; distance *= 2) {
        const float scale = 2 * distance == block ? rotation_scale(block) : 1.f;
        for (int64_t i = 0; i < block; i += 2 * distance) {
            for (int64_t j = i; j < i + distance; j += 4) {
                float32x4_t a = vld1q_f32(out + j), b = vld1q_f32(out + j + distance);
                butterfly(a, b);
                vst1q_f32(out + j, vmulq_n_f32(a, scale));
                vst1q_f32(out + j + distance, vmulq_n_f32(b, scale));
            }
        }
    }
}

struct Values : WordByWord {
    float32x4_t x[kVectors];
    int64_t units;

    Values(const Linear& l, int64_t row, const Segment& s) : units(s.units) {
        const int64_t at = row * l.weight.shape.in_features + s.channel;
        if (s.count == kSegmentUnits * kUnitSlots) {
            for (int i = 0; i < kVectors; i++) {
                x[i] = load_four(l.x, l.type, at + 4 * i);
            }
            return;
        }
        float padded[kSegmentUnits * kUnitSlots] = {};
        load_floats(l.x, l.type, at, s.count, padded);
        for (int i = 0; i < kVectors; i++) {
            x[i] = vld1q_f32(padded + 4 * i);
        }
    }

    static void rotate(const Linear& l, int64_t row, const uint64_t* signs, float* out) {
        const int64_t K = l.weight.shape.in_features;
        for (int64_t k = 0; k < K; k += l.rotation.block) {
            rotate_block(l, row * K + k, k, signs, out + k);
        }
    }

    uint32_t absmax_bits() const {
        uint32x4_t most = vdupq_n_u32(0);
        for (int i = 0; i < kVectors; i++) {
            most = vmaxq_u32(most, magnitude(x[i]));
        }
        return vmaxvq_u32(most);
    }

    bool has_outliers(uint32_t largest) const {
        if (largest <= 7u << 23) {
            return false;
        }
        const uint32x4_t bound = vdupq_n_u32(largest - (7u << 23));
        uint32x4_t small = vdupq_n_u32(0), nonzero = small;  // counted by subtracting -1
        for (int i = 0; i < kVectors; i++) {
            const uint32x4_t bits = magnitude(x[i]), counts = vtstq_u32(bits, bits);
            nonzero = vsubq_u32(nonzero, counts);
            small = vsubq_u32(small, vandq_u32(counts, vcltq_u32(bits, bound)));
        }
        return 2 * vaddvq_u32(small) > vaddvq_u32(nonzero);
    }

    TermSums quantize_to(uint32_t* out, bool /* pairs: quads is all there is */, int planes, float scale) const {
        const int64_t plane = units * kUnitQuads;
        const float32x4_t divisor = vdupq_n_f32(scale);
        int32x4_t sum = vdupq_n_s32(0), low_sum = sum;
        for (int64_t i = 0; i < units * kUnitSlots / 4; i += 4, out += 4) {
            int32x4_t q[4], low[4], high[4];
            for (int j = 0; j < 4; j++) {
                q[j] = vcvtnq_s32_f32(vdivq_f32(x[i + j], divisor));
                if (planes == 3) {
                    low[j] = vsubq_s32(q[j], vshlq_n_s32(without_low_byte(q[j]), 8));
                    low_sum = vaddq_s32(low_sum, low[j]);
                    q[j] = without_low_byte(q[j]);
                }
                sum = vaddq_s32(sum, q[j]);
                high[j] = without_low_byte(q[j]);
            }
            store_quads(q, planes == 1 ? out : out + plane);
            if (planes > 1) {
                store_quads(high, out);
            }
            if (planes == 3) {
                store_quads(low, out + 2 * plane);
            }
        }
        return {vaddvq_s32(sum), vaddvq_s32(low_sum)};
    }
};

// The order of gemm_i8mm: quads come in pairs, and a row's two quads are neighbours.
struct ValuesForI8mm : Values {
    using Values::Values;

    static void interleave(const uint32_t (&rows)[kMaxBatchRows][kRowWords], int64_t count, int64_t R, uint32_t* out) {
        if (R <= kGemvRows) {
            return Values::interleave(rows, count, R, out);
        }
        for (int64_t j = 0; j < count; j += 2) {
            for (int64_t m = 0; m < R; m++, out += 2) {
                vst1_u32(out, vld1_u32(rows[m] + j));
            }
        }
    }
};

}  // namespace

void quantize(const Linear& l, Activations& a, int64_t begin, int64_t end) { quantize_with<Values>(l, a, begin, end); }

void quantize_for_i8mm(const Linear& l, Activations& a, int64_t begin, int64_t end) {
    quantize_with<ValuesForI8mm>(l, a, begin, end);
}

}  // namespace qaig::neon

#endif
