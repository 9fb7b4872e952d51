// Checks the arguments of `gptq_columns`, for every device.
#pragma once

#include "ops/checks.h"

namespace qaig {
namespace gptq_ops {

constexpr int64_t kMostColumns = 32;  // rounded by one call

// `gptq_columns_reference` in transformers_qaig/rounding/gptq_columns.py says what the arguments are. Only `factor` may
// be a view of a larger matrix.
inline void check(const Tensor& rows, const Tensor& errors, const Tensor& codes, const Tensor& factor,
                  const Tensor& groups, const Tensor& step, const Tensor& scale, const Tensor& zero, int64_t max_code,
                  int device) {
    STD_TORCH_CHECK(rows.dim() == 2 && step.dim() == 2, "rows and step must have two dimensions, got ",
                    shape_text(shape_of(rows)), " and ", shape_text(shape_of(step)));
    const int64_t count = rows.size(0), size = rows.size(1), groups_there = step.size(0);
    STD_TORCH_CHECK(count >= 1 && count <= kMostColumns, "rows must be 1 to ", kMostColumns, ", got ", count);
    STD_TORCH_CHECK(size < int64_t{1} << 31 && groups_there >= 1 && groups_there < int64_t{1} << 31,
                    "rows and step must be shorter than 2^31, and step must have rows");
    STD_TORCH_CHECK(max_code >= 1 && max_code <= 255, "max_code must be between 1 and 255, got ", max_code);
    const auto check = [&](const char* name, const Tensor& t, std::initializer_list<int64_t> shape, ScalarType type) {
        check_dtype(name, t, {type});
        STD_TORCH_CHECK(is_on(t, device), name, " is not on ", device_name(device),
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
}

}  // namespace gptq_ops
}  // namespace qaig
