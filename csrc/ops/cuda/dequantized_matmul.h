// Dequantizes a weight some rows at a time, and lets torch multiply.
#pragma once

#include <algorithm>
#include <array>

#include "ops/cuda/activations.h"

namespace qaig {
namespace [[gnu::visibility("hidden")]] cuda_ops {  // as torch's types are

inline void dequantize_rows(const PackedWeight& w, int64_t start, int64_t stop, const Tensor& out,
                            const Device& device) {
    const QaigDequantize arguments = {w.words.const_data_ptr(),
                                      w.scale.const_data_ptr(),
                                      w.zeros(),
                                      out.mutable_data_ptr(),
                                      static_cast<int>(start),
                                      static_cast<int>(stop),
                                      w.shape.out_features,
                                      w.shape.in_features,
                                      w.shape.group_size,
                                      w.shape.bits,
                                      type_of(w.scale.scalar_type()),
                                      type_of(out.scalar_type())};
    check_status(qaig_cuda_dequantize(&arguments, device.stream), "unpacking a weight");
}

inline Tensor detached(const Tensor& t) {
    std::array<StableIValue, 1> stack{torch::stable::detail::from(t)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::detach", "", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
}

// y = x W' + bias by torch. The rows of y need not be contiguous.
inline void torch_linear(const Tensor& x, const Tensor& weight, const Optional& bias, const Tensor& y) {
    using torch::stable::detail::from;
    std::array<StableIValue, 4> stack{from(x), from(weight), from(bias), from(y)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "out", stack.data(), TORCH_ABI_VERSION));
    const auto result = torch::stable::detail::to<Tensor>(stack[0]);  // y again: it takes over the stack's reference
}

// y = token_scale * products + bias, in float32. The result is rounded once, where it is stored.
inline void scale_rows(const Tensor& products, const Tensor& token_scale, const Optional& bias, const Tensor& y) {
    using torch::stable::detail::from;
    const Tensor column = torch::stable::view(token_scale, {token_scale.size(0), 1});
    if (!bias) {
        std::array<StableIValue, 3> stack{from(products), from(column), from(y)};
        TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mul", "out", stack.data(), TORCH_ABI_VERSION));
        const auto result = torch::stable::detail::to<Tensor>(stack[0]);  // y again
        return;
    }
    std::array<StableIValue, 2> stack{from(products), from(column)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mul", "Tensor", stack.data(), TORCH_ABI_VERSION));
    const auto scaled = torch::stable::detail::to<Tensor>(stack[0]);
    Tensor out = y;
    torch::stable::copy_(out, torch::stable::subtract(scaled, *bias, -1.0));
}

// Dequantizes rows of the weight into one buffer, and multiplies by them. An x that is rounded to 8 bits holds integers
// times a power of two. Those are exact in 16 bits, so only products are rounded.
inline void dequantized_matmul(const Tensor& x, const Layer& l, Inputs& inputs, bool round, long long chunk_bytes,
                               const Device& device) {
    const PackedWeight& w = *l.weight;
    const int64_t n = w.shape.out_features, k = w.shape.in_features, blocks = cuda::kBlockRows;
    const int64_t fitting = chunk_bytes / (k * static_cast<int64_t>(x.element_size())) / blocks * blocks;
    const int64_t step = std::min<int64_t>(n, std::max(blocks, fitting));
    const Tensor memory = torch::stable::new_empty(x, {step, k});
    Tensor input = detached(x);
    Optional token_scale, bias;
    if (round) {
        const Input& in = inputs.get(l);
        Tensor slots = in.x;
        input = torch::stable::narrow(slots, 1, 0, k);
        token_scale = in.token_scale;
    }
    if (*l.bias) {
        bias = detached(torch::stable::to(**l.bias, round ? ScalarType::Float : x.scalar_type()));
    }
    for (int64_t start = 0; start < n; start += step) {
        const int64_t rows = std::min(step, n - start);
        Tensor part = memory, y = l.y;
        part = torch::stable::narrow(part, 0, 0, rows);
        y = torch::stable::narrow(y, 1, start, rows);
        Optional part_bias = bias;
        if (part_bias) {
            part_bias = torch::stable::narrow(*part_bias, 0, start, rows);
        }
        dequantize_rows(w, start, start + rows, part, device);
        if (token_scale) {
            const Tensor products = torch::stable::new_empty(x, {x.size(0), rows});
            torch_linear(input, part, std::nullopt, products);
            scale_rows(products, *token_scale, part_bias, y);
        } else {
            torch_linear(input, part, part_bias, y);
        }
    }
}

}  // namespace cuda_ops
}  // namespace qaig
