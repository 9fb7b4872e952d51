// The operators of torch.ops.qaig on CUDA devices. Empty in a library that is built without nvcc.
//
// Tests compile this file with QAIG_EMULATED. Kernels then run on the emulator, and tensors are the CPU's.
#if defined(QAIG_CUDA_ARCHS) || defined(QAIG_EMULATED)

#include <torch/csrc/stable/library.h>

#include <vector>

#include "ops/cuda/dequantized_matmul.h"
#include "ops/cuda/experts.h"
#include "ops/cuda/gptq_columns.h"
#include "ops/cuda/packed_matmul.h"
#include "ops/reference.h"

namespace qaig {
namespace cuda_ops {
namespace {

std::vector<Tensor> linear_many(const Tensor& x, const std::vector<Tensor>& packed, const std::vector<Tensor>& scale,
                                const std::vector<Optional>& zero, const std::vector<Optional>& bias,
                                const std::vector<int64_t>& rotation_block, const std::vector<int64_t>& rotation_seed,
                                const std::vector<int64_t>& out_features, const std::vector<int64_t>& bits,
                                const std::vector<int64_t>& group_size, int64_t activation_bits, int64_t layout) {
    check_input(x, activation_bits);
    const size_t count =
        checked_count(packed, scale, zero, bias, rotation_block, rotation_seed, out_features, bits, group_size);
    for (size_t i = 0; i < count; i++) {
        check_rotation(rotation_block[i], rotation_seed[i], x.size(-1));
    }
    const bool in_checkpoint_layout = is_checkpoint_layout(layout);
    // An error within the reference would lose its message, so the same checks run here first.
    const auto by_reference = [&](size_t i) {
        const int device = x.is_cpu() ? kCpu : x.get_device();
        if (in_checkpoint_layout) {
            const int64_t channels = checked_group(out_features[i], x.size(-1), bits[i], group_size[i]);
            check_checkpoint_layout(packed[i], scale[i], zero[i], out_features[i], x.size(-1), bits[i],
                                    x.size(-1) / channels, device);
        } else {
            PackedWeight(packed[i], scale[i], zero[i], out_features[i], x.size(-1), bits[i], group_size[i], layout,
                         device);
        }
        checked_bias(bias[i], out_features[i], device);
        return reference_linear(x, packed[i], scale[i], zero[i], bias[i], rotation_block[i], rotation_seed[i],
                                out_features[i], bits[i], group_size[i], activation_bits, layout);
    };
    std::vector<Tensor> results;
    if (in_checkpoint_layout || !is_half(x)) {
        for (size_t i = 0; i < count; i++) {
            results.push_back(by_reference(i));
        }
        return results;
    }
    const Device device(x);
    std::vector<int64_t> y_shape = shape_of(x);
    const int64_t in_features = y_shape.back();
    std::vector<PackedWeight> weights;
    std::vector<Optional> biases;
    for (size_t i = 0; i < count; i++) {  // all checks come before the first product
        weights.emplace_back(packed[i], scale[i], zero[i], out_features[i], in_features, bits[i], group_size[i], layout,
                             device.index);
        biases.push_back(checked_bias(bias[i], out_features[i], device.index));
    }
    if (count == 0) {
        return results;
    }
    const int64_t rows = x.numel() / in_features;
    int processors = 0, capability = 0;
    check_status(qaig_cuda_device(&processors, &capability), "asking about the device");
    const cuda::Tuning& tuning = cuda::tuning_for(capability);
    const Tensor flat = torch::stable::reshape(as_contiguous(x), {rows, in_features});
    const bool round = activation_bits == 8;
    Inputs inputs(flat, round, device);
    std::vector<Layer> packed_layers;
    for (size_t i = 0; i < count; i++) {
        const MatmulKernel kernel = choose_kernel(weights[i], rows, round, rotation_block[i] != 0, tuning);
        if (rows > 0 && kernel == MatmulKernel::kReference) {
            results.push_back(by_reference(i));
            continue;
        }
        y_shape.back() = out_features[i];
        results.push_back(torch::stable::new_empty(x, y_shape));
        if (rows == 0) {
            continue;
        }
        const Layer layer = {&weights[i],
                             &biases[i],
                             rotation_block[i],
                             rotation_seed[i],
                             torch::stable::view(results.back(), {rows, out_features[i]}),
                             kernel};
        if (kernel == MatmulKernel::kDequantize) {
            dequantized_matmul(flat, layer, inputs, round, tuning.chunk_bytes, device);
        } else {
            packed_layers.push_back(layer);
        }
    }
    packed_matmul(flat, packed_layers, inputs, device);
    return results;
}

Tensor linear(const Tensor& x, const Tensor& packed, const Tensor& scale, const Optional& zero, const Optional& bias,
              int64_t rotation_block, int64_t rotation_seed, int64_t out_features, int64_t bits, int64_t group_size,
              int64_t activation_bits, int64_t layout) {
    return linear_many(x, {packed}, {scale}, {zero}, {bias}, {rotation_block}, {rotation_seed}, {out_features}, {bits},
                       {group_size}, activation_bits, layout)[0];
}

// Rows [start, stop) of the weight in float32.
Tensor dequantize(const Tensor& packed, const Tensor& scale, const Optional& zero, int64_t out_features,
                  int64_t in_features, int64_t bits, int64_t group_size, int64_t layout, int64_t start, int64_t stop) {
    const Device device(packed);
    const PackedWeight weight(packed, scale, zero, out_features, in_features, bits, group_size, layout, device.index);
    check_range("rows", start, stop, out_features);
    const Tensor y = torch::stable::new_empty(packed, {stop - start, in_features}, ScalarType::Float);
    dequantize_rows(weight, start, stop, y, device);
    return y;
}

}  // namespace
}  // namespace cuda_ops
}  // namespace qaig

#if defined(QAIG_EMULATED)
STABLE_TORCH_LIBRARY_IMPL(qaig_emulated, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(qaig, CUDA, m) {
#endif
    m.impl("linear", TORCH_BOX(&qaig::cuda_ops::linear));
    m.impl("linear_many", TORCH_BOX(&qaig::cuda_ops::linear_many));
    m.impl("dequantize", TORCH_BOX(&qaig::cuda_ops::dequantize));
    m.impl("gptq_columns", TORCH_BOX(&qaig::cuda_ops::gptq_columns));
    m.impl("experts_linear", TORCH_BOX(&qaig::cuda_ops::experts_linear));
}

#endif
