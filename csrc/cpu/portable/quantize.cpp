// Quantizes x in C++ without intrinsics, to pairs of 16-bit integers.
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/quantize.h"

namespace qaig::portable {
namespace {

struct Values : WordByWord {
    float x[kSegmentUnits * kUnitSlots] = {};
    int64_t count, units;

    Values(const Linear& l, int64_t row, const Segment& s) : count(s.count), units(s.units) {
        load_floats(l.x, l.type, row * l.weight.shape.in_features + s.channel, s.count, x);
    }

    static void rotate(const Linear& l, int64_t row, const uint64_t* signs, float* out) {
        const int64_t K = l.weight.shape.in_features;
        load_floats(l.x, l.type, row * K, K, out);
        rotate_floats(out, K, l.rotation.block, signs);
    }

    uint32_t absmax_bits() const {
        uint32_t most = 0;
        for (int64_t i = 0; i < count; i++) {
            most = std::max(most, to_bits(x[i]) & 0x7fffffff);
        }
        return most;
    }

    bool has_outliers(uint32_t largest) const {
        const uint32_t bound = largest < 7u << 23 ? 0 : largest - (7u << 23);
        int64_t small = 0, nonzero = 0;
        for (int64_t i = 0; i < count; i++) {
            const uint32_t bits = to_bits(x[i]) & 0x7fffffff;
            nonzero += bits != 0;
            small += bits != 0 && bits < bound;
        }
        return 2 * small > nonzero;
    }

    TermSums quantize_to(uint32_t* out, bool /* quads: pairs is all there is */, int planes, float scale) const {
        int32_t q[kSegmentUnits * kUnitSlots], low[kSegmentUnits * kUnitSlots];
        TermSums sums = {0, 0};
        for (int64_t i = 0; i < units * kUnitSlots; i++) {
            q[i] = static_cast<int32_t>(std::nearbyint(x[i] / scale));
            if (planes == 3) {
                const int32_t upper = (q[i] + 128) >> 8;
                low[i] = q[i] - 256 * upper;
                q[i] = upper;
                sums.second += low[i];
            }
            sums.first += q[i];
        }
        for (int term = 0; term < terms(planes); term++) {
            const int32_t* values = term == 0 ? q : low;
            for (int64_t i = 0; i < units * kUnitPairs; i++) {
                *out++ = static_cast<uint32_t>(values[2 * i] & 0xffff) | static_cast<uint32_t>(values[2 * i + 1]) << 16;
            }
        }
        return sums;
    }
};

}  // namespace

void quantize(const Linear& l, Activations& a, int64_t begin, int64_t end) { quantize_with<Values>(l, a, begin, end); }

}  // namespace qaig::portable
