// The linear operator in plain torch, for what has no kernel.
#pragma once

#include <array>

#include "ops/checks.h"

namespace qaig {

inline Tensor reference_linear(const Tensor& x, const Tensor& packed, const Tensor& scale, const Optional& zero,
                               const Optional& bias, int64_t rotation_block, int64_t rotation_seed,
                               int64_t out_features, int64_t bits, int64_t group_size, int64_t activation_bits,
                               int64_t layout) {
    using torch::stable::detail::from;
    std::array<StableIValue, 12> stack{from(x),    from(packed),         from(scale),           from(zero),
                                       from(bias), from(rotation_block), from(rotation_seed),   from(out_features),
                                       from(bits), from(group_size),     from(activation_bits), from(layout)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("qaig::linear_reference", "", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace qaig
