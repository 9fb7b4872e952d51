// Products by kernels that read packed words.
#pragma once

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "ops/cuda/activations.h"

namespace qaig {
namespace [[gnu::visibility("hidden")]] cuda_ops {  // as torch's types are

using WorkspaceOf = int (*)(const QaigDecode*, long long*, long long*);
using Launch = int (*)(const QaigDecode*, int, void*);

// Rows [row, row + rows) of x by up to QAIG_MOST_LAYERS layers, all multiplied in one way.
inline void launch_product(const Tensor& x, const std::vector<const Layer*>& layers, Inputs& inputs, int64_t row,
                           int64_t rows, const Device& device) {
    const Way way = layers[0]->way;
    const int64_t size = x.element_size();
    QaigDecode arguments = {};
    arguments.rows = static_cast<int>(rows);
    arguments.layer_count = static_cast<int>(layers.size());
    for (size_t i = 0; i < layers.size(); i++) {
        const Layer& l = *layers[i];
        const PackedWeight& w = *l.weight;
        const Input& in = inputs.of(l);
        QaigLayer& to = arguments.layers[i];
        to.words = w.words.const_data_ptr();
        to.scale = w.scale.const_data_ptr();
        to.zero = w.zeros();
        to.x = static_cast<const char*>(in.x.const_data_ptr()) + row * in.stride * (way == Way::kInteger ? 1 : size);
        to.y = static_cast<char*>(l.y.mutable_data_ptr()) + row * w.shape.out_features * size;
        to.token_scale = in.token_scales(row);
        if (*l.bias) {
            to.bias = (*l.bias)->const_data_ptr();
            to.bias_type = type_of((*l.bias)->scalar_type());
        }
        to.x_stride = in.stride;
        to.x_slots = static_cast<int>(in.slots);
        to.out_features = w.shape.out_features;
        to.in_features = w.shape.in_features;
        to.group_size = w.shape.group_size;
        to.bits = w.shape.bits;
        to.scale_type = type_of(w.scale.scalar_type());
    }
    const WorkspaceOf workspace = way == Way::kDecode  ? qaig_cuda_decode_workspace
                                  : way == Way::kFused ? qaig_cuda_fused_workspace
                                                       : qaig_cuda_integer_workspace;
    const Launch launch = way == Way::kDecode  ? qaig_cuda_decode
                          : way == Way::kFused ? qaig_cuda_fused
                                               : qaig_cuda_integer;
    long long partial_bytes = 0, counters = 0;
    check_status(workspace(&arguments, &partial_bytes, &counters), "planning a product");
    const Tensor partials = torch::stable::new_empty(x, {static_cast<int64_t>(partial_bytes) / 4}, ScalarType::Float);
    arguments.partials = static_cast<float*>(partials.mutable_data_ptr());
    check_status(qaig_cuda_counters(device.stream, counters, &arguments.counters), "taking counters");
    Tensor zeros;
    if (!arguments.counters) {
        zeros = torch::stable::new_zeros(x, {static_cast<int64_t>(counters)}, ScalarType::Int);
        arguments.counters = static_cast<unsigned*>(zeros.mutable_data_ptr());
    }
    check_status(launch(&arguments, type_of(x.scalar_type()), device.stream), "a product");
}

// All layers in as few launches as possible: by the decode kernels for each 16 rows of x [rows][in_features], or by the
// fused or the integer kernels, which take all rows at once, but layers of one width.
inline void multiply_packed(const Tensor& x, const std::vector<Layer>& layers, Inputs& inputs, const Device& device) {
    std::map<std::pair<Way, int>, std::vector<const Layer*>> together;
    for (const Layer& l : layers) {
        together[{l.way, l.way == Way::kDecode ? cuda::kMixed : l.weight->shape.bits}].push_back(&l);
    }
    for (const auto& [key, all] : together) {
        const int64_t rows = x.size(0), step = key.first == Way::kDecode ? int64_t{QAIG_MOST_ROWS} : rows;
        for (int64_t row = 0; row < rows; row += step) {
            for (auto first = all.begin(); first != all.end();) {
                const auto last = first + std::min<ptrdiff_t>(QAIG_MOST_LAYERS, all.end() - first);
                launch_product(x, {first, last}, inputs, row, std::min(step, rows - row), device);
                first = last;
            }
        }
    }
}

}  // namespace cuda_ops
}  // namespace qaig
