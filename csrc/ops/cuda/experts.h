// experts_linear on a CUDA device. The host does not know the offsets, and does not wait for them.
#pragma once

#include <vector>

#include "ops/cuda/activations.h"
#include "ops/experts.h"
#include "ops/reference.h"

namespace qaig {
namespace [[gnu::visibility("hidden")]] cuda_ops {  // as torch's types are

// Whether the kernels take these checked sizes. If not, the reference computes.
inline bool has_experts_kernel(const cuda::Shape& s, int64_t rows, int64_t experts) {
    return rows <= cuda::kMaxGemmRows && experts <= QAIG_MAX_EXPERTS && s.row_blocks() <= cuda::kMaxGridY &&
           s.work_items() < cuda::kMaxSteps;
}

// Multiplies the rows of each expert with its weight. All tensors were checked.
inline Tensor launch_experts(const Tensor& x, const Tensor& offsets, const Tensor& packed, const Tensor& scale,
                             const Optional& zero, const experts_ops::Sections& sections, int64_t experts,
                             const cuda::Shape& shape, bool round, const Device& device) {
    const int64_t rows = x.size(0);
    const Tensor y = torch::stable::new_empty(x, {rows, shape.out_features});
    if (rows == 0) {
        return y;
    }
    const Tensor flat = as_contiguous(x), bounds = as_contiguous(offsets);
    const Tensor words = as_aligned(packed), scales = as_aligned(scale);
    const Optional zeros = zero ? Optional(as_aligned(*zero)) : std::nullopt;
    Inputs inputs(flat, round, device);
    const Input& input = inputs.get(packed_input_group(shape), 0, 0, false);
    QaigExperts arguments = {};
    arguments.words = words.const_data_ptr();
    arguments.scale = scales.const_data_ptr();
    arguments.zero = zeros ? static_cast<const unsigned char*>(zeros->const_data_ptr()) : nullptr;
    arguments.offsets = static_cast<const int*>(bounds.const_data_ptr());
    arguments.x = input.x.const_data_ptr();
    arguments.token_scale = input.token_scales(0);
    arguments.y = y.mutable_data_ptr();
    arguments.x_stride = input.stride;
    arguments.x_slots = static_cast<int>(input.slots);
    arguments.rows = static_cast<int>(rows);
    arguments.experts = static_cast<int>(experts);
    arguments.out_features = shape.out_features;
    arguments.in_features = shape.in_features;
    arguments.group_size = shape.group_size;
    arguments.scale_type = type_of(scale.scalar_type());
    for (int64_t e = 0; e < experts; e++) {
        arguments.bits[e] = static_cast<unsigned char>(sections.bits_of(e));
    }
    check_status(qaig_cuda_experts(&arguments, type_of(x.scalar_type()), device.stream), "a product of experts");
    return y;
}

inline Tensor experts_linear(const Tensor& x, const Tensor& offsets, const Tensor& packed, const Tensor& scale,
                             const Optional& zero, const std::vector<int64_t>& bits, int64_t out_features,
                             int64_t group_size, int64_t activation_bits, int64_t layout) {
    experts_ops::check_rows(x, activation_bits);
    const bool in_checkpoint_layout = is_checkpoint_layout(layout);
    const Device device(x);
    const int64_t experts = experts_ops::checked_experts(offsets, device.index), in_features = x.size(1);
    const int64_t channels = experts_ops::checked_group(bits, experts, out_features, in_features, group_size);
    experts_ops::Sections sections(bits, experts, out_features, in_features, in_features / channels);
    // An error within the reference would lose its message, so everything is checked here first.
    if (in_checkpoint_layout) {
        sections.check_checkpoint_layout(packed, scale, zero, device.index);
    } else {
        cuda::Shape shape = {};
        for (const int64_t width : bits) {
            shape = checked_shape(out_features, in_features, width, channels);
        }
        const int64_t tile_words = int64_t{shape.tiles()} * 32 * 4;
        sections.check_kernel_layout({shape.row_blocks(), cuda::kBlockRows, tile_words}, packed, scale, zero,
                                     device.index);
        if (is_half(x) && scale.scalar_type() != ScalarType::Float && has_experts_kernel(shape, x.size(0), experts)) {
            return launch_experts(x, offsets, packed, scale, zero, sections, experts, shape, activation_bits == 8,
                                  device);
        }
    }
    return reference_experts_linear(x, offsets, packed, scale, zero, bits, out_features, group_size, activation_bits,
                                    layout);
}

}  // namespace cuda_ops
}  // namespace qaig
