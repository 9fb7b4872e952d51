// The operators experts_route and experts_sum on the CPU: they sort rows by expert, and add up each token's rows
// (transformers_qaig/nn/experts_routing.py).
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "cpu/floats.h"
#include "cpu/parallel.h"
#include "ops/checks.h"
#include "ops/cpu_weight.h"
#include "ops/experts.h"

namespace qaig {
namespace {

constexpr int64_t kMinParallelBytes = 1 << 20;  // with fewer, starting threads costs more than they save
constexpr int64_t kColumns = 512;               // summed at a time, so that they stay in the L1 cache

Parallel threads_for(int64_t bytes) {
    Parallel threads = torch_threads();
    threads.threads = bytes < kMinParallelBytes ? 1 : threads.threads;
    return threads;
}

// The chosen experts. Checks that they are from 0 to `most`.
std::vector<int64_t> checked_ids(const Tensor& index, int64_t most) {
    const Tensor flat = as_contiguous(index);
    std::vector<int64_t> ids(flat.numel());
    if (flat.scalar_type() == ScalarType::Int) {
        const auto* from = static_cast<const int32_t*>(flat.const_data_ptr());
        std::copy(from, from + ids.size(), ids.begin());
    } else {
        const auto* from = static_cast<const int64_t*>(flat.const_data_ptr());
        std::copy(from, from + ids.size(), ids.begin());
    }
    for (const int64_t id : ids) {
        STD_TORCH_CHECK(0 <= id && id <= most, "the indices of the chosen experts must be from 0 to ", most, " (", most,
                        " for none), got ", id);
    }
    return ids;
}

// Returns the rows of all choices sorted by expert, where each expert's rows begin, and the choice of each row.
std::tuple<Tensor, Tensor, Tensor> experts_route(const Tensor& hidden, const Tensor& index, int64_t experts,
                                                 int64_t choices) {
    check_activation("hidden", hidden);
    check_matrix("hidden", hidden);
    check_matrix("index", index);
    const int64_t tokens = hidden.size(0), channels = hidden.size(1), routed = index.size(1);
    check_tensor("index", index, {tokens, routed}, {ScalarType::Int, ScalarType::Long});
    STD_TORCH_CHECK(1 <= experts && experts <= choices && choices <= experts_ops::kMostExperts,
                    "a stack must have 1 to ", experts_ops::kMostExperts, " experts, and as many choices or more, got ",
                    experts, " and ", choices);
    const int64_t rows = index.numel();
    STD_TORCH_CHECK(rows <= INT32_MAX, "offsets have 32 bits, got ", rows, " rows");
    const std::vector<int64_t> ids = checked_ids(index, choices);
    std::vector<int64_t> begin(choices + 2, 0);
    for (const int64_t id : ids) {
        begin[id + 1]++;
    }
    for (int64_t e = 0; e <= choices; e++) {
        begin[e + 1] += begin[e];
    }
    const Tensor offsets = torch::stable::new_empty(index, {experts + 1}, ScalarType::Int);
    std::copy(begin.begin(), begin.begin() + experts + 1, static_cast<int32_t*>(offsets.mutable_data_ptr()));
    const Tensor order = torch::stable::new_empty(index, {rows}, ScalarType::Long);
    auto* choice_of = static_cast<int64_t*>(order.mutable_data_ptr());
    for (int64_t i = 0; i < rows; i++) {
        choice_of[begin[ids[i]]++] = i;
    }
    const Tensor flat = as_contiguous(hidden), x = torch::stable::new_empty(hidden, {rows, channels});
    const int64_t bytes = channels * static_cast<int64_t>(hidden.element_size());
    const auto* from = static_cast<const char*>(flat.const_data_ptr());
    auto* to = static_cast<char*>(x.mutable_data_ptr());
    parallel_chunks(threads_for(rows * bytes), rows, 16, [&] {
        return [&](int64_t first, int64_t last) {
            for (int64_t row = first; row < last; row++) {
                std::copy_n(from + choice_of[row] / routed * bytes, bytes, to + row * bytes);
            }
        };
    });
    return {x, offsets, order};
}

// Inverts a permutation: `order` has the choice of each row, the result the row of each choice.
std::vector<int64_t> inverse(const Tensor& order) {
    const Tensor flat = as_contiguous(order);
    const auto* choice_of = static_cast<const int64_t*>(flat.const_data_ptr());
    const int64_t rows = flat.numel();
    std::vector<int64_t> row_of(rows, -1);
    for (int64_t row = 0; row < rows; row++) {
        const int64_t choice = choice_of[row];
        STD_TORCH_CHECK(0 <= choice && choice < rows && row_of[choice] < 0, "order must hold each number from 0 to ",
                        rows - 1, " once, got ", choice, " in row ", row);
        row_of[choice] = row;
    }
    return row_of;
}

// Adds factor * values[at : at + count] to `sum`. Each product is rounded to `to` first.
void add_product(const void* values, Scalar from, int64_t at, int64_t count, float factor, Scalar to, float* sum) {
    if (from == Scalar::bf16 && to == Scalar::bf16) {  // the common case, without buffers in memory
        const auto* half = static_cast<const uint16_t*>(values) + at;
        for (int64_t i = 0; i < count; i++) {
            uint32_t bits = uint32_t(half[i]) << 16;
            float product, rounded;
            std::memcpy(&product, &bits, 4);
            product *= factor;
            std::memcpy(&bits, &product, 4);
            bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
            std::memcpy(&rounded, &bits, 4);
            sum[i] += product == product ? rounded : product;  // keeps NaN
        }
        return;
    }
    float part[kColumns];
    uint16_t rounded[kColumns];
    load_floats(values, from, at, count, part);
    for (int64_t i = 0; i < count; i++) {
        part[i] *= factor;
    }
    if (to != Scalar::f32) {
        store_floats(rounded, to, 0, count, part);
        load_floats(rounded, to, 0, count, part);
    }
    for (int64_t i = 0; i < count; i++) {
        sum[i] += part[i];
    }
}

// Sums each token's rows times their weights. Products are rounded to the result's dtype, sums once, at the end.
Tensor experts_sum(const Tensor& rows, const Tensor& weights, const Tensor& order) {
    check_matrix("rows", rows);
    check_matrix("weights", weights);
    const int64_t tokens = weights.size(0), routed = weights.size(1), channels = rows.size(1);
    check_tensor("weights", weights, {tokens, routed}, kScaleTypes);
    check_tensor("rows", rows, {weights.numel(), channels}, kScaleTypes);
    check_tensor("order", order, {weights.numel()}, {ScalarType::Long});
    const std::vector<int64_t> row_of = inverse(order);
    const Tensor flat = as_contiguous(rows), factors = as_contiguous(weights);
    const bool same = rows.scalar_type() == weights.scalar_type();
    const ScalarType result = same ? rows.scalar_type() : ScalarType::Float;
    const Scalar from = scalar(rows.scalar_type()), factor_type = scalar(weights.scalar_type()), to = scalar(result);
    const Tensor y = torch::stable::new_empty(rows, {tokens, channels}, result);
    void* out = y.mutable_data_ptr();
    const void* values = flat.const_data_ptr();
    std::vector<float> factor(weights.numel());
    load_floats(factors.const_data_ptr(), factor_type, 0, weights.numel(), factor.data());
    parallel_chunks(threads_for(flat.numel() * size_of(from)), tokens, 4, [&] {
        return [&](int64_t first, int64_t last) {
            float sum[kColumns];
            for (int64_t token = first; token < last; token++) {
                for (int64_t column = 0; column < channels; column += kColumns) {
                    const int64_t count = std::min(kColumns, channels - column);
                    std::fill(sum, sum + count, 0.f);
                    for (int64_t choice = token * routed; choice < (token + 1) * routed; choice++) {
                        add_product(values, from, row_of[choice] * channels + column, count, factor[choice], to, sum);
                    }
                    store_floats(out, to, token * channels + column, count, sum);
                }
            }
        };
    });
    return y;
}

}  // namespace
}  // namespace qaig

STABLE_TORCH_LIBRARY_IMPL(qaig, CPU, m) {
    m.impl("experts_route", TORCH_BOX(&qaig::experts_route));
    m.impl("experts_sum", TORCH_BOX(&qaig::experts_sum));
}
