// Prepares x for the kernels: as it is, or in slot order, rotated and quantized by a kernel of its own.
#pragma once

#include <map>
#include <tuple>

#include "ops/cuda/device.h"
#include "ops/cuda/layer.h"

namespace qaig {
namespace [[gnu::visibility("hidden")]] cuda_ops {  // as torch's types are

// The x of a kernel, as arguments.h describes it. It is rounded to 8 bits if there is a token_scale.
struct Input {
    Tensor x;
    Optional token_scale;
    int64_t stride, slots;

    const float* token_scales(int64_t row) const {
        return token_scale ? static_cast<const float*>(token_scale->const_data_ptr()) + row : nullptr;
    }
};

// Prepares x [rows][in_features] for each layer, once for all layers that need the same.
class Inputs {
public:
    Inputs(const Tensor& x, bool round, const Device& device) : x_(x), round_(round), device_(device) {}

    const Input& get(const Layer& l) {
        return get(l.input_group(), l.rotation_block, l.rotation_seed, l.kernel == MatmulKernel::kGemmI8);
    }

    const Input& get(int group, int64_t rotation_block, int64_t rotation_seed, bool bytes) {
        const auto key = std::make_tuple(group, rotation_block, rotation_block ? rotation_seed : 0, bytes);
        const auto known = inputs_.find(key);
        return known != inputs_.end()
                   ? known->second
                   : inputs_.emplace(key, make(group, rotation_block, rotation_seed, bytes)).first->second;
    }

private:
    Input make(int group, int64_t rotation_block, int64_t rotation_seed, bool bytes) const {
        const Tensor x = rotation_block ? as_aligned(x_) : x_;
        const int64_t rows = x.size(0), in_features = x.size(1);
        const cuda::Shape order = {1, static_cast<int>(in_features), group, 2};
        if (!round_ && order.in_channel_order() && in_features % 8 == 0) {
            return {as_aligned(x), std::nullopt, in_features, in_features};
        }
        const int64_t slots = order.slots();
        Input input = {torch::stable::new_empty(x, {rows, slots}), std::nullopt, bytes ? 2 * slots : slots, slots};
        float* token_scale = nullptr;
        if (round_) {
            input.token_scale = torch::stable::new_empty(x, {rows}, ScalarType::Float);
            token_scale = static_cast<float*>(input.token_scale->mutable_data_ptr());
        }
        const QaigQuantizeActivations arguments = {x.const_data_ptr(),
                                                   input.x.mutable_data_ptr(),
                                                   token_scale,
                                                   static_cast<unsigned long long>(rotation_seed),
                                                   static_cast<int>(rotation_block),
                                                   static_cast<int>(rows),
                                                   order.in_features,
                                                   order.group_size,
                                                   order.slots(),
                                                   bytes};
        check_status(qaig_cuda_quantize_activations(&arguments, type_of(x.scalar_type()), device_.stream),
                     "quantizing x");
        return input;
    }

    const Tensor& x_;
    bool round_;
    const Device& device_;
    std::map<std::tuple<int, int64_t, int64_t, bool>, Input> inputs_;
};

}  // namespace cuda_ops
}  // namespace qaig
