// Converts between float32 and the 16-bit floats, without intrinsics.
#include "cpu/floats.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace qaig {
namespace {

float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
    float value;
    uint32_t bits;
    if (exponent == 0) {
        value = static_cast<float>(mantissa) * 0x1p-24f;
        std::memcpy(&bits, &value, 4);
    } else {
        bits = (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
    }
    bits |= sign;
    std::memcpy(&value, &bits, 4);
    return value;
}

uint16_t float_to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) {
        return static_cast<uint16_t>(sign | 0x7e00);
    }
    if (bits >= 0x477ff000) {
        return static_cast<uint16_t>(sign | 0x7c00);  // rounds to more than 65504
    }
    if (bits < 0x38800000) {  // subnormal: an integer times 2^-24
        std::memcpy(&value, &bits, 4);
        return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(value * 0x1p24f)));
    }
    return static_cast<uint16_t>(sign | (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
}

}  // namespace

void load_floats(const void* p, Scalar type, int64_t at, int64_t count, float* out) {
    if (type == Scalar::f32) {
        std::copy_n(static_cast<const float*>(p) + at, count, out);  // a null pointer is fine for no elements
        return;
    }
    const auto* half = static_cast<const uint16_t*>(p) + at;
    if (type == Scalar::f16) {
        for (int64_t i = 0; i < count; i++) {
            out[i] = half_to_float(half[i]);
        }
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = uint32_t(half[i]) << 16;
        std::memcpy(out + i, &bits, 4);
    }
}

void store_floats(void* p, Scalar type, int64_t at, int64_t count, const float* values) {
    if (type == Scalar::f32) {
        std::copy_n(values, count, static_cast<float*>(p) + at);
        return;
    }
    auto* half = static_cast<uint16_t*>(p) + at;
    for (int64_t i = 0; i < count; i++) {
        if (type == Scalar::f16) {
            half[i] = float_to_half(values[i]);
            continue;
        }
        uint32_t bits;
        std::memcpy(&bits, values + i, 4);
        const bool nan = (bits & 0x7fffffff) > 0x7f800000;
        half[i] = static_cast<uint16_t>(nan ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

}  // namespace qaig
