// Checks packed weights and biases on CUDA devices.
#pragma once

#include "cuda/arguments.h"
#include "ops/checks.h"

namespace qaig {
namespace [[gnu::visibility("hidden")]] cuda_ops {  // as torch's types are

constexpr int64_t kCheckpointLayout = 0, kCudaLayout = 2;

// Whether a layout is the checkpoint layout. CUDA devices read their own layout, too.
inline bool is_checkpoint_layout(int64_t layout) {
    STD_TORCH_CHECK(layout == kCheckpointLayout || layout == kCudaLayout, "layout=", layout,
                    " belongs to another backend: CUDA devices read 0 (the checkpoint layout) and 2 (their own)");
    return layout == kCheckpointLayout;
}

// The sizes of a weight in the CUDA layout. `channels` are those of a group.
inline cuda::Shape checked_shape(int64_t out_features, int64_t in_features, int64_t bits, int64_t channels) {
    STD_TORCH_CHECK(cuda::has_cuda_layout(static_cast<int>(bits)),
                    "layout=2 is for 2, 3, 4 and 8 bits, got bits=", bits);
    constexpr int64_t kMax = 1 << 24;
    STD_TORCH_CHECK(out_features < kMax && in_features < kMax,
                    "the CUDA kernels take out_features and in_features below 2^24, got ", out_features, " and ",
                    in_features);
    return {static_cast<int>(out_features), static_cast<int>(in_features), static_cast<int>(channels),
            static_cast<int>(bits)};
}

inline int type_of(ScalarType type) {
    return type == ScalarType::Half ? QAIG_F16 : type == ScalarType::BFloat16 ? QAIG_BF16 : QAIG_F32;
}

// Whether the kernels take the dtype of x.
inline bool is_half(const Tensor& x) {
    return x.scalar_type() == ScalarType::Half || x.scalar_type() == ScalarType::BFloat16;
}

// A contiguous tensor at an address from which kernels can read 16 bytes at once.
inline Tensor as_aligned(const Tensor& t) {
    const Tensor c = as_contiguous(t);
    return reinterpret_cast<uintptr_t>(c.const_data_ptr()) % 16 ? torch::stable::clone(c) : c;
}

// A packed weight with checked tensors, which it owns.
struct PackedWeight {
    PackedWeight(const Tensor& packed, const Tensor& scale_, const Optional& zero_, int64_t out_features,
                 int64_t in_features, int64_t bits, int64_t group_size, int64_t layout, int device) {
        const int64_t channels = checked_group(out_features, in_features, bits, group_size);
        STD_TORCH_CHECK(layout == kCudaLayout, "layout=", layout, " is not the CUDA layout, which is 2");
        shape = checked_shape(out_features, in_features, bits, channels);
        const int64_t blocks = shape.row_blocks(), groups = shape.groups();
        check_packed(packed, {blocks, shape.tiles(), bits, 32, 4}, scale_, {blocks, groups, cuda::kBlockRows}, zero_,
                     {blocks, groups, cuda::kBlockRows}, ScalarType::Byte, device);
        words = as_aligned(packed);
        scale = as_aligned(scale_);
        if (zero_) {
            zero = as_aligned(*zero_);
        }
    }

    const unsigned char* zeros() const {
        return zero ? static_cast<const unsigned char*>(zero->const_data_ptr()) : nullptr;
    }

    cuda::Shape shape;
    Tensor words, scale;
    Optional zero;
};

inline Optional checked_bias(const Optional& bias, int64_t out_features, int device) {
    if (!bias) {
        return std::nullopt;
    }
    check_bias(*bias, out_features, device);
    return as_contiguous(bias->scalar_type() == ScalarType::Double ? torch::stable::to(*bias, ScalarType::Float)
                                                                   : *bias);
}

}  // namespace cuda_ops
}  // namespace qaig
