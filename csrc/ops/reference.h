// Calls operators in plain torch, for arguments that no kernel takes.
#pragma once

#include <array>
#include <vector>

#include "ops/checks.h"

namespace qaig {

// Calls an operator that returns a tensor.
template <class... Arguments>
Tensor call_operator(const char* name, const Arguments&... arguments) {
    std::array<StableIValue, sizeof...(arguments)> stack{torch::stable::detail::from(arguments)...};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor reference_linear(const Tensor& x, const Tensor& packed, const Tensor& scale, const Optional& zero,
                               const Optional& bias, int64_t rotation_block, int64_t rotation_seed,
                               int64_t out_features, int64_t bits, int64_t group_size, int64_t activation_bits,
                               int64_t layout) {
    return call_operator("qaig::linear_reference", x, packed, scale, zero, bias, rotation_block, rotation_seed,
                         out_features, bits, group_size, activation_bits, layout);
}

inline Tensor reference_experts_linear(const Tensor& x, const Tensor& offsets, const Tensor& packed,
                                       const Tensor& scale, const Optional& zero, const std::vector<int64_t>& bits,
                                       int64_t out_features, int64_t group_size, int64_t activation_bits,
                                       int64_t layout) {
    return call_operator("qaig::experts_linear_reference", x, offsets, packed, scale, zero, bits, out_features,
                         group_size, activation_bits, layout);
}

}  // namespace qaig
