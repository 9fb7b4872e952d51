// Checks tensors of a CUDA device, and runs GPTQ's inner loop on them.
#pragma once

#include "cuda/geometry.h"
#include "ops/cuda/device.h"

namespace qaig {
namespace [[gnu::visibility("hidden")]] cuda_ops {  // as torch's types are

// Computes what `gptq_columns_reference` does (transformers_qaig/rounding/gptq_columns.py). Only `factor` may be a view
// of a larger matrix.
inline void gptq_columns(Tensor rows, Tensor errors, Tensor codes, const Tensor& factor, const Tensor& groups,
                         const Tensor& step, const Tensor& scale, const Tensor& zero, int64_t max_code) {
    STD_TORCH_CHECK(rows.dim() == 2 && step.dim() == 2, "rows and step must have two dimensions, got ",
                    shape_text(shape_of(rows)), " and ", shape_text(shape_of(step)));
    const int64_t count = rows.size(0), size = rows.size(1), groups_there = step.size(0);
    STD_TORCH_CHECK(count >= 1 && count <= cuda::kMaxGptqColumns, "rows must be 1 to ", cuda::kMaxGptqColumns, ", got ",
                    count);
    STD_TORCH_CHECK(size < int64_t{1} << 31 && groups_there >= 1 && groups_there < int64_t{1} << 31,
                    "rows and step must be shorter than 2^31, and step must have rows");
    STD_TORCH_CHECK(max_code >= 1 && max_code <= 255, "max_code must be between 1 and 255, got ", max_code);
    const Device device(rows);
    const auto check = [&](const char* name, const Tensor& t, std::initializer_list<int64_t> shape, ScalarType type) {
        check_dtype(name, t, {type});
        STD_TORCH_CHECK(is_on(t, device.index), name, " is not on ", device_name(device.index),
                        " but rows is: move both to one device");
        STD_TORCH_CHECK(has_shape(t, shape), name, " must have shape ", shape_text(shape), ", got ",
                        shape_text(shape_of(t)));
        STD_TORCH_CHECK(&t == &factor ? t.stride(0) > 0 && t.stride(1) > 0 : t.is_contiguous(), name,
                        " must be contiguous, factor at least not expanded");
        check_storage(name, t);
    };
    check("rows", rows, {count, size}, ScalarType::Float);
    check("errors", errors, {count, size}, ScalarType::Float);
    check("codes", codes, {count, size}, ScalarType::Byte);
    check("factor", factor, {count, count}, ScalarType::Float);
    check("groups", groups, {count}, ScalarType::Long);
    check("step", step, {groups_there, size}, ScalarType::Float);
    check("scale", scale, {groups_there, size}, ScalarType::Float);
    check("zero", zero, {groups_there, size}, ScalarType::Float);
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
