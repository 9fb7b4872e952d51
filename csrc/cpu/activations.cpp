#include "activations.h"

#include <cmath>
#include <cstring>

#include "kernels.h"
#include "parallel.h"

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
    if (bits > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (bits >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to more than 65504
    if (bits < 0x38800000) {                                               // subnormal: an integer times 2^-24
        std::memcpy(&value, &bits, 4);
        return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(value * 0x1p24f)));
    }
    return static_cast<uint16_t>(sign | (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
}

uint32_t magnitude(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits & 0x7fffffff;
}

// What `part` of `planes` planes holds of q.
int32_t part_of(int32_t q, int planes, int part) {
    if (planes < 3) return q;
    const int32_t upper = (q + 128) >> 8;
    return part == 0 ? upper : q - 256 * upper;
}

void put_row(const Activations& a, int planes, int64_t batch, int64_t m, int64_t index, const Segment& s, const float* x,
             float scale8) {
    const int64_t rows = a.batch_rows, pairs = s.units * kUnitPairs;
    uint32_t* out = a.words.data() + batch * a.batch_words + s.unit * kUnitPairs * parts(planes) * rows + m;
    float* scales = a.scales.data() + batch * a.batch_sums + index * kMaxParts * rows + m;
    int32_t* sums = a.sums.data() + batch * a.batch_sums + index * kMaxParts * rows + m;
    float scale = scale8;
    if (planes > 1) {
        uint32_t largest = 0;
        for (int64_t i = 0; i < s.count; i++) largest = std::max(largest, magnitude(x[i]));
        uint32_t least;
        std::memcpy(&least, &kSmallest, 4);
        scale = largest < least ? 0 : power_scale(largest, digits(planes));
    }
    int32_t q[kSegmentUnits * kUnitSlots] = {};
    if (scale != 0) {
        for (int64_t i = 0; i < s.count; i++) q[i] = static_cast<int32_t>(std::nearbyint(x[i] / scale));
    }
    for (int part = 0; part < parts(planes); part++, out += pairs * rows) {
        int32_t sum = 0;
        for (int64_t i = 0; i < pairs; i++) {
            const int32_t even = part_of(q[2 * i], planes, part), odd = part_of(q[2 * i + 1], planes, part);
            sum += even + odd;
            out[i * rows] = static_cast<uint32_t>(even & 0xffff) | static_cast<uint32_t>(odd) << 16;
        }
        sums[part * rows] = sum;
        scales[part * rows] = planes == 3 && part == 0 ? 256 * scale : scale;
    }
}

// Whether two planes would leave more than half of the values fewer bits than bfloat16 has.
bool has_outliers(const float* x, int64_t count, uint32_t largest) {
    const uint32_t bound = largest < 7u << 23 ? 0 : largest - (7u << 23);
    int64_t small = 0, nonzero = 0;
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = magnitude(x[i]);
        nonzero += bits != 0;
        small += bits != 0 && bits < bound;
    }
    return 2 * small > nonzero;
}

void quantize_batch(const Linear& l, Activations& a, int64_t batch, float* values) {
    const Shape& shape = l.weight.shape;
    const int64_t row0 = batch * a.batch_rows, rows = std::min(a.batch_rows, l.rows - row0), width = shape.in_features;
    std::vector<float> scale8(a.batch_rows, 0);
    int planes = l.activation_bits == 8 ? 1 : l.type == Scalar::f32 ? 3 : 2;
    std::fill_n(values, a.batch_rows * width, 0.f);
    for (int64_t m = 0; m < rows; m++) {
        float* x = values + m * width;
        load_floats(l.x, l.type, (row0 + m) * width, width, x);
        uint32_t largest = 0;
        for (int64_t i = 0; i < width; i++) largest = std::max(largest, magnitude(x[i]));
        a.skipped[row0 + m] = is_skipped(largest, l.activation_bits);
        if (a.skipped[row0 + m]) {
            std::fill_n(x, width, 0.f);
            continue;
        }
        float most;
        std::memcpy(&most, &largest, 4);
        scale8[m] = std::max(most, 1e-5f) / 127;
        for (int64_t i = 0; i < shape.segments() && planes == 2; i++) {
            const Segment s = segment_at(shape, i);
            uint32_t in_segment = 0;
            for (int64_t k = 0; k < s.count; k++) in_segment = std::max(in_segment, magnitude(x[s.channel + k]));
            if (has_outliers(x + s.channel, s.count, in_segment)) planes = 3;
        }
    }
    a.planes[batch] = static_cast<uint8_t>(planes);
    for (int64_t i = 0; i < shape.segments(); i++) {
        const Segment s = segment_at(shape, i);
        for (int64_t m = 0; m < a.batch_rows; m++) {
            put_row(a, planes, batch, m, i, s, values + m * width + s.channel, scale8[m]);
        }
    }
}

}  // namespace

void load_floats(const void* p, Scalar type, int64_t at, int64_t count, float* out) {
    if (type == Scalar::f32) {
        std::memcpy(out, static_cast<const float*>(p) + at, count * sizeof(float));
        return;
    }
    const auto* half = static_cast<const uint16_t*>(p) + at;
    if (type == Scalar::f16) {
        for (int64_t i = 0; i < count; i++) out[i] = half_to_float(half[i]);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = uint32_t(half[i]) << 16;
        std::memcpy(out + i, &bits, 4);
    }
}

void store_floats(void* p, Scalar type, int64_t at, int64_t count, const float* values) {
    if (type == Scalar::f32) {
        std::memcpy(static_cast<float*>(p) + at, values, count * sizeof(float));
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

void quantize_pairs(const Linear& l, Activations& a) {
    share(l.parallel, a.batches, 1, [&] {
        return [&, values = std::make_shared<Buffer<float>>(a.batch_rows * l.weight.shape.in_features)](int64_t begin,
                                                                                                        int64_t end) {
            for (int64_t b = begin; b < end; b++) quantize_batch(l, a, b, values->data());
        };
    });
}

}  // namespace qaig
