// Shared by the NEON kernels: loads, scales and zero points, unpacked codes. Every aarch64 processor can run this.
#pragma once

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/unroll.h"

#if defined(QAIG_NEON)

#include <arm_neon.h>

#define QAIG_DOTPROD_BEGIN QAIG_TARGET_BEGIN("arch=armv8.2-a+dotprod")
#define QAIG_I8MM_BEGIN QAIG_TARGET_BEGIN("arch=armv8.2-a+dotprod+i8mm")

namespace qaig::neon {

constexpr int kRegisterRows = 4, kRegisters = kTileRows / kRegisterRows;  // a tile's 16 rows are four registers
constexpr int kQuadBytes = 4 * kTileRows;                                 // codes of a quad of all rows

QAIG_INLINE float32x4_t load_four(const void* p, Scalar type, int64_t at) {
    if (type == Scalar::f32) {
        return vld1q_f32(static_cast<const float*>(p) + at);
    }
    const uint16x4_t half = vld1_u16(static_cast<const uint16_t*>(p) + at);
    if (type == Scalar::f16) {
        return vcvt_f32_f16(vreinterpret_f16_u16(half));
    }
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

// Scales and zero points of a tile in one group. 128 is subtracted from 8-bit codes, and from their zero points.
struct QParams {
    float32x4_t scale[kRegisters];
    int32x4_t zero[kRegisters];

    QAIG_INLINE QParams(const Weight& w, const Tile& tile, int64_t group) {
        const int bits = w.shape.bits;
        const uint8x16_t bytes =
            tile.zero ? vld1q_u8(tile.zero + group * kTileRows) : vdupq_n_u8(static_cast<uint8_t>(1 << (bits - 1)));
        const uint16x8_t halves[2] = {vmovl_u8(vget_low_u8(bytes)), vmovl_u8(vget_high_u8(bytes))};
        const int32x4_t offset = vdupq_n_s32(kernel_bits(bits) == 8 ? 128 : 0);
        for (int h = 0; h < kRegisters; h++) {
            const uint16x4_t four = h % 2 ? vget_high_u16(halves[h / 2]) : vget_low_u16(halves[h / 2]);
            zero[h] = vsubq_s32(vreinterpretq_s32_u32(vmovl_u16(four)), offset);
            scale[h] = load_four(tile.scale, w.scale_type, group * kTileRows + kRegisterRows * h);
        }
    }

    // Adds scale * x_scale * (sum - zero * x_sum) to `out`. `sum` has products of codes and q, x_sum is the sum of q.
    QAIG_INLINE float32x4_t add(int h, int32x4_t sum, float x_scale, int32_t x_sum, float32x4_t out) const {
        const int32x4_t exact = vmlsq_s32(sum, zero[h], vdupq_n_s32(x_sum));
        return vfmaq_f32(out, vmulq_n_f32(scale[h], x_scale), vcvtq_f32_s32(exact));
    }
};

// First bit of a quad's codes within their bytes, if they are masked without a shift. A quad that reaches the top of
// its bytes takes one shift and no mask, so it begins at bit 0.
constexpr int place_bit(int bits, int q) {
    const int bit = quad_bit(bits, q);
    return bits == 8 || (bits == 3 && q >= 6) || bit + bits == 8 ? 0 : bit;
}

// Quad Q of a unit for 4 rows, as signed bytes (8-bit codes minus 128). In place, they are 2^place_bit times the codes.
template <int B, int Q, bool InPlace>
QAIG_INLINE int8x16_t quad(const uint32_t* words) {
    const auto word = [&](int i) QAIG_LAMBDA_INLINE { return vreinterpretq_u8_u32(vld1q_u32(words + i * kTileRows)); };
    uint8x16_t codes;
    if constexpr (B == 8) {
        codes = veorq_u8(word(Q), vdupq_n_u8(128));
    } else if constexpr (B == 3 && Q >= 6) {  // spread over two words: the upper bit comes first
        const uint8x16_t high = Q == 6 ? vshlq_n_u8(word(2), 1) : word(2);
        codes = vsriq_n_u8(vshrq_n_u8(high, 5), word(Q - 6), 6);
    } else {
        constexpr int bit = quad_bit(B, Q), mask = (1 << B) - 1;
        const uint8x16_t from = word(quad_word(B, Q));
        if constexpr (bit + B == 8) {
            codes = vshrq_n_u8(from, bit);
        } else if constexpr (bit == 0 || InPlace) {
            codes = vandq_u8(from, vdupq_n_u8(mask << bit));
        } else {
            codes = vandq_u8(vshrq_n_u8(from, bit), vdupq_n_u8(mask));
        }
    }
    return vreinterpretq_s8_u8(codes);
}

}  // namespace qaig::neon

#endif
