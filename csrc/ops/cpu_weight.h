// Checks a packed weight on the CPU, and wraps torch's threads for the kernels.
#pragma once

#include "cpu/kernels.h"
#include "ops/checks.h"

namespace qaig {

enum Layout : int64_t { kCheckpointLayout = 0, kCpuLayout = 1 };

inline Shape checked_shape(int64_t out_features, int64_t in_features, int64_t bits, int64_t group_size) {
    const int64_t channels = checked_group(out_features, in_features, bits, group_size);
    return {out_features, in_features, channels, static_cast<int>(bits)};
}

inline Scalar scalar(ScalarType type) {
    return type == ScalarType::Half ? Scalar::f16 : type == ScalarType::BFloat16 ? Scalar::bf16 : Scalar::f32;
}

// Whether a layout is the checkpoint layout. The CPU reads its own layout, too.
inline bool is_checkpoint_layout(int64_t layout, int64_t bits) {
    STD_TORCH_CHECK(layout == kCheckpointLayout || layout == kCpuLayout, "layout=", layout,
                    " belongs to another backend: the CPU reads 0 (the checkpoint layout) and 1 (its own)");
    STD_TORCH_CHECK(layout == kCheckpointLayout || has_cpu_layout(static_cast<int>(bits)),
                    "layout=1 is for 2, 3, 4 and 8 bits, got bits=", bits);
    return layout == kCheckpointLayout;
}

// A packed weight with checked tensors. It owns what `view` points to.
struct PackedWeight {
    PackedWeight(const Tensor& packed_, const Tensor& scale_, const Optional& zero_, int64_t out_features,
                 int64_t in_features, int64_t bits, int64_t group_size, int64_t layout) {
        const Shape s = checked_shape(out_features, in_features, bits, group_size);
        const bool in_checkpoint_layout = is_checkpoint_layout(layout, s.bits);
        if (in_checkpoint_layout) {
            check_checkpoint_layout(packed_, scale_, zero_, s.out_features, s.in_features, bits, s.groups(), kCpu);
        } else {
            check_packed(packed_, {s.tiles(), s.units(), s.bits, kTileRows}, scale_, {s.tiles(), s.groups(), kTileRows},
                         zero_, {s.tiles(), s.groups(), kTileRows}, ScalarType::Byte, kCpu);
        }
        packed = as_contiguous(packed_);
        scale = as_contiguous(scale_);
        if (zero_) {
            zero = as_contiguous(*zero_);
        }
        view = {s,
                in_checkpoint_layout,
                static_cast<const uint32_t*>(packed.const_data_ptr()),
                scale.const_data_ptr(),
                scalar(scale.scalar_type()),
                zero ? zero->const_data_ptr() : nullptr};
    }

    Tensor packed, scale;
    Optional zero;
    Weight view;
};

inline Parallel torch_threads() {
    const auto run = [](int64_t size, void* context, Body body) {
        torch::stable::parallel_for(0, size, 1, [&](int64_t begin, int64_t end) { body(context, begin, end); });
    };
    return {run, static_cast<int>(torch::stable::get_num_threads())};
}

}  // namespace qaig
