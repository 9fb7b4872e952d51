// Prepares x for AMX: integers row by row, or bfloat16 unit by unit.
#include <algorithm>

#include "cpu/isa.h"
#include "cpu/kernels.h"

#if defined(__x86_64__)

namespace qaig::amx {
namespace {

// Bits of the largest absolute value of `count` bfloat16, as a float32.
uint32_t absmax_bits(const uint16_t* x, int64_t count) {
    uint16_t most = 0;
    for (int64_t k = 0; k < count; k++) {
        most = std::max<uint16_t>(most, x[k] & 0x7fff);
    }
    return static_cast<uint32_t>(most) << 16;
}

// Copies a row of x to its place in each unit of a batch of R rows. Slots beyond a group's channels become zeros.
void copy_row(const Shape& s, const uint16_t* x, int64_t m, int64_t R, uint16_t* batch) {
    uint16_t* out = batch + m * kUnitSlots;
    for (int64_t k = 0; k < s.in_features;) {
        const int64_t end = std::min(k + kUnitSlots, (k / s.group_size + 1) * s.group_size);
        std::fill(std::copy(x + k, x + end, out), out + kUnitSlots, uint16_t{0});
        out += R * kUnitSlots;
        k = end;
    }
}

void copy_bf16_rows(const Linear& l, Activations& a, int64_t begin, int64_t end) {
    const Shape& s = l.weight.shape;
    const int64_t R = a.batch_rows;
    const std::vector<uint16_t> zeros(s.in_features);
    for (int64_t m = begin * R; m < end * R; m++) {
        const uint16_t* row = zeros.data();
        if (m < l.rows) {
            const uint16_t* x = static_cast<const uint16_t*>(l.x) + m * s.in_features;
            a.skipped[m] = is_skipped(absmax_bits(x, s.in_features), l.activation_bits);
            row = a.skipped[m] ? row : x;
        }
        copy_row(s, row, m % R, R, reinterpret_cast<uint16_t*>(a.words.data() + m / R * a.batch_words));
    }
}

}  // namespace

void quantize(const Linear& l, Activations& a, int64_t begin, int64_t end) {
    if (a.layout == ActivationLayout::bf16) {
        return copy_bf16_rows(l, a, begin, end);
    }
    (can_run(Isa::avx512) ? avx512::quantize_by_rows : avx2::quantize_by_rows)(l, a, begin, end);
}

}  // namespace qaig::amx

#endif
