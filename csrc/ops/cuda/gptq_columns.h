// Checks tensors of a CUDA device, and runs GPTQ's inner loop on them.
#pragma once

#include "cuda/geometry.h"
#include "ops/cuda/device.h"
#include "ops/gptq_columns.h"

namespace qaig {
namespace [[gnu::visibility("hidden")]] cuda_ops {  // as torch's types are

static_assert(gptq_ops::kMostColumns == cuda::kMaxGptqColumns);

// Computes what `gptq_columns_reference` does (transformers_qaig/rounding/gptq_columns.py). Only `factor` may be a view
// of a larger matrix.
inline void gptq_columns(Tensor rows, Tensor errors, Tensor codes, const Tensor& factor, const Tensor& groups,
                         const Tensor& step, const Tensor& scale, const Tensor& zero, int64_t max_code) {
    const Device device(rows);
    gptq_ops::check(rows, errors, codes, factor, groups, step, scale, zero, max_code, device.index);
    const int64_t count = rows.size(0), size = rows.size(1), groups_there = step.size(0);
    if (size == 0) {
        return;
    }
    const QaigGptqColumns arguments = {static_cast<float*>(rows.mutable_data_ptr()),
                                       static_cast<float*>(errors.mutable_data_ptr()),
                                       static_cast<unsigned char*>(codes.mutable_data_ptr()),
                                       static_cast<const float*>(factor.const_data_ptr()),
                                       static_cast<const long long*>(groups.const_data_ptr()),
                                       static_cast<const float*>(step.const_data_ptr()),
                                       static_cast<const float*>(scale.const_data_ptr()),
                                       static_cast<const float*>(zero.const_data_ptr()),
                                       size,
                                       factor.stride(0),
                                       factor.stride(1),
                                       static_cast<int>(count),
                                       static_cast<int>(groups_there),
                                       static_cast<int>(max_code)};
    check_status(qaig_cuda_gptq_columns(&arguments, device.stream), "rounding columns");
}

}  // namespace cuda_ops
}  // namespace qaig
