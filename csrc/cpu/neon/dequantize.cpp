// Dequantizes a tile with NEON into rows. A quad has four neighbouring channels of each row.
#include "cpu/neon/common.h"

#if defined(QAIG_NEON)

namespace qaig::neon {
namespace {

QAIG_DEFINE_UNROLL

// Dequantizes a quad of rows 4 h to 4 h + 3, and stores its first `count` channels.
QAIG_INLINE void store_quad(int8x16_t quad, const QParams& qparams, int h, int64_t count, int64_t stride, float* out) {
    static constexpr uint8_t kOrder[16] = {0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15};
    const int8x16_t codes = vqtbl1q_s8(quad, vld1q_u8(kOrder));
    const int16x8_t halves[2] = {vmovl_s8(vget_low_s8(codes)), vmovl_s8(vget_high_s8(codes))};
    unroll<kRegisterRows>([&](auto r) QAIG_LAMBDA_INLINE {
        const int32x4_t four = vmovl_s16(r % 2 ? vget_high_s16(halves[r / 2]) : vget_low_s16(halves[r / 2]));
        const int32x4_t exact = vsubq_s32(four, vdupq_laneq_s32(qparams.zero[h], r));
        const float32x4_t value = vmulq_laneq_f32(vcvtq_f32_s32(exact), qparams.scale[h], r);
        float* to = out + (kRegisterRows * h + r) * stride;
        if (count >= 4) {
            vst1q_f32(to, value);
        } else {
            float values[4];
            vst1q_f32(values, value);
            std::copy_n(values, std::max<int64_t>(0, count), to);
        }
    });
}

template <int B>
void dequantize(const Weight& w, const Tile& tile, float* out) {
    const Shape& s = w.shape;
    const uint32_t* words = tile.words;
    for (int64_t g = 0; g < s.groups(); g++) {
        const QParams qparams(w, tile, g);
        for (int64_t k = 0; k < s.group_size; k += kUnitSlots, words += B * kTileRows) {
            for (int h = 0; h < kRegisters; h++) {
                unroll<kUnitQuads>([&](auto q) QAIG_LAMBDA_INLINE {
                    const int64_t channel = k + 4 * q;
                    store_quad(quad<B, q, false>(words + kRegisterRows * h), qparams, h, s.group_size - channel,
                               s.in_features, out + g * s.group_size + channel);
                });
            }
        }
    }
}

}  // namespace

void dequantize_tile(const Weight& w, const Tile& tile, float* out) {
    switch (kernel_bits(w.shape.bits)) {
        case 2: return dequantize<2>(w, tile, out);
        case 3: return dequantize<3>(w, tile, out);
        case 4: return dequantize<4>(w, tile, out);
        default: return dequantize<8>(w, tile, out);
    }
}

}  // namespace qaig::neon

#endif
