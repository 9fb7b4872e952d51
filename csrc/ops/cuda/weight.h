// Checks packed weights and biases on CUDA devices.
#pragma once

#include "cuda/arguments.h"
#include "ops/checks.h"

namespace qaig {
namespace [[gnu::visibility("hidden")]] cuda_ops {  // as torch's types are

constexpr int64_t kCheckpointLayout = 0, kCudaLayout = 2;

inline int type_of(ScalarType type) {
    return type == ScalarType::Half ? QAIG_F16 : type == ScalarType::BFloat16 ? QAIG_BF16 : QAIG_F32;
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
        STD_TORCH_CHECK(cuda::has_cuda_layout(static_cast<int>(bits)),
                        "layout=2 is for 2, 3, 4 and 8 bits, got bits=", bits);
        constexpr int64_t kMax = 1 << 24;
        STD_TORCH_CHECK(out_features < kMax && in_features < kMax,
                        "the CUDA kernels take out_features and in_features below 2^24, got ", out_features, " and ",
                        in_features);
        shape = {static_cast<int>(out_features), static_cast<int>(in_features), static_cast<int>(channels),
                 static_cast<int>(bits)};
        const int64_t blocks = shape.row_blocks(), groups = shape.groups();
        check_tensor("packed", packed, {blocks, shape.tiles(), bits, 32, 4}, {ScalarType::Int}, device);
        check_tensor("scale", scale_, {blocks, groups, cuda::kBlockRows},
                     {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float}, device);
        if (zero_) {
            check_tensor("zero", *zero_, {blocks, groups, cuda::kBlockRows}, {ScalarType::Byte}, device);
            zero = as_aligned(*zero_);
        }
        words = as_aligned(packed);
        scale = as_aligned(scale_);
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
    check_tensor("bias", *bias, {out_features},
                 {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float, ScalarType::Double}, device);
    return as_contiguous(bias->scalar_type() == ScalarType::Double ? torch::stable::to(*bias, ScalarType::Float)
                                                                   : *bias);
}

}  // namespace cuda_ops
}  // namespace qaig
