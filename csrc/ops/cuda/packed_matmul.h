// Launches gemv and gemm, the kernels that read packed words.
#pragma once

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "ops/cuda/activations.h"

namespace qaig {
namespace [[gnu::visibility("hidden")]] cuda_ops {  // as torch's types are

using WorkspaceQuery = int (*)(const QaigMatmul*, long long*, long long*);
using Launch = int (*)(const QaigMatmul*, int, void*);

// Multiplies rows [row, row + rows) of x with up to QAIG_MAX_LAYERS layers, in one launch.
inline void launch_packed_matmul(const Tensor& x, const std::vector<const Layer*>& layers, Inputs& inputs, int64_t row,
                                 int64_t rows, const Device& device) {
    const MatmulKernel kernel = layers[0]->kernel;
    const int64_t size = x.element_size();
    QaigMatmul arguments = {};
    arguments.rows = static_cast<int>(rows);
    arguments.layer_count = static_cast<int>(layers.size());
    for (size_t i = 0; i < layers.size(); i++) {
        const Layer& l = *layers[i];
        const PackedWeight& w = *l.weight;
        const Input& in = inputs.get(l);
        QaigLayer& to = arguments.layers[i];
        to.words = w.words.const_data_ptr();
        to.scale = w.scale.const_data_ptr();
        to.zero = w.zeros();
        to.x = static_cast<const char*>(in.x.const_data_ptr()) +
               row * in.stride * (kernel == MatmulKernel::kGemmI8 ? 1 : size);
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
    const WorkspaceQuery query_workspace = kernel == MatmulKernel::kGemv      ? qaig_cuda_gemv_workspace
                                           : kernel == MatmulKernel::kGemmF16 ? qaig_cuda_gemm_f16_workspace
                                                                              : qaig_cuda_gemm_i8_workspace;
    const Launch launch = kernel == MatmulKernel::kGemv      ? qaig_cuda_gemv
                          : kernel == MatmulKernel::kGemmF16 ? qaig_cuda_gemm_f16
                                                             : qaig_cuda_gemm_i8;
    long long workspace_bytes = 0, semaphores = 0;
    check_status(query_workspace(&arguments, &workspace_bytes, &semaphores), "planning a product");
    const Tensor workspace =
        torch::stable::new_empty(x, {static_cast<int64_t>(workspace_bytes) / 4}, ScalarType::Float);
    arguments.workspace = static_cast<float*>(workspace.mutable_data_ptr());
    check_status(qaig_cuda_semaphores(device.stream, semaphores, &arguments.semaphores), "taking semaphores");
    Tensor zeros;
    if (!arguments.semaphores) {
        zeros = torch::stable::new_zeros(x, {static_cast<int64_t>(semaphores)}, ScalarType::Int);
        arguments.semaphores = static_cast<unsigned*>(zeros.mutable_data_ptr());
    }
    check_status(launch(&arguments, type_of(x.scalar_type()), device.stream), "a product");
}

// Multiplies x [rows][in_features] with all layers, in as few launches as possible. A gemv takes 16 rows of x, and
// layers of several widths. A gemm takes all rows, and layers of one width.
inline void packed_matmul(const Tensor& x, const std::vector<Layer>& layers, Inputs& inputs, const Device& device) {
    std::map<std::pair<MatmulKernel, int>, std::vector<const Layer*>> launches;
    for (const Layer& l : layers) {
        launches[{l.kernel, l.kernel == MatmulKernel::kGemv ? cuda::kMixedBits : l.weight->shape.bits}].push_back(&l);
    }
    for (const auto& [key, all] : launches) {
        const int64_t rows = x.size(0), step = key.first == MatmulKernel::kGemv ? int64_t{QAIG_MAX_GEMV_ROWS} : rows;
        for (int64_t row = 0; row < rows; row += step) {
            for (auto first = all.begin(); first != all.end();) {
                const auto last = first + std::min<ptrdiff_t>(QAIG_MAX_LAYERS, all.end() - first);
                launch_packed_matmul(x, {first, last}, inputs, row, std::min(step, rows - row), device);
                first = last;
            }
        }
    }
}

}  // namespace cuda_ops
}  // namespace qaig
