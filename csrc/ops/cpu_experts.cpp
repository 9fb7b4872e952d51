// The operator experts_linear on the CPU: one projection of a stack of experts (transformers_qaig/formats/experts.py).
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/kernels.h"
#include "ops/checks.h"
#include "ops/cpu_weight.h"
#include "ops/experts.h"
#include "ops/reference.h"

namespace qaig {
namespace {

using experts_ops::check_rows;
using experts_ops::checked_experts;
using experts_ops::Sections;

// Where each expert's rows begin, [E + 1]. Every range lies within `rows`.
std::vector<int64_t> checked_offsets(const Tensor& offsets, int64_t rows) {
    const Tensor flat = as_contiguous(offsets);
    const auto* from = static_cast<const int32_t*>(flat.const_data_ptr());
    const std::vector<int64_t> bounds(from, from + flat.numel());
    STD_TORCH_CHECK(bounds.front() == 0 && bounds.back() <= rows && std::is_sorted(bounds.begin(), bounds.end()),
                    "offsets must begin with 0, never decrease, and end at most at ", rows,
                    ", the number of rows, got ", shape_text(bounds), ": an index of an expert is out of range");
    return bounds;
}

// The checked tensors of a stack. It owns what its weights point to.
class ExpertWeights {
public:
    ExpertWeights(const Tensor& packed, const Tensor& scale, const Optional& zero, const std::vector<int64_t>& bits,
                  int64_t experts, int64_t out_features, int64_t in_features, int64_t group_size, int64_t layout)
        : shape_{out_features, in_features,
                 experts_ops::checked_group(bits, experts, out_features, in_features, group_size),
                 static_cast<int>(bits[0])},
          sections_(bits, experts, out_features, in_features, shape_.groups()) {
        for (const int64_t width : bits) {
            in_checkpoint_layout_ = is_checkpoint_layout(layout, width);
        }
        if (in_checkpoint_layout_) {
            sections_.check_checkpoint_layout(packed, scale, zero, kCpu);
        } else {
            sections_.check_kernel_layout({shape_.tiles(), kTileRows, shape_.units() * kTileRows}, packed, scale, zero,
                                          kCpu);
        }
        packed_ = as_contiguous(packed);
        scale_ = as_contiguous(scale);
        if (zero) {
            zero_ = as_contiguous(*zero);
        }
    }

    Weight weight(int64_t e) const {
        const Scalar type = scalar(scale_.scalar_type());
        const int64_t rows = in_checkpoint_layout_ ? shape_.out_features : shape_.tiles() * kTileRows;
        const int64_t zero_size = in_checkpoint_layout_ ? sizeof(uint32_t) : sizeof(uint8_t);
        Shape shape = shape_;
        shape.bits = static_cast<int>(sections_.bits_of(e));
        return {shape,
                in_checkpoint_layout_,
                static_cast<const uint32_t*>(packed_.const_data_ptr()) + sections_.words(e),
                static_cast<const char*>(scale_.const_data_ptr()) + e * rows * shape.groups() * size_of(type),
                type,
                zero_ ? static_cast<const char*>(zero_->const_data_ptr()) + sections_.zeros(e) * zero_size : nullptr};
    }

private:
    Shape shape_;  // with the bits of the first expert
    bool in_checkpoint_layout_ = true;
    Sections sections_;
    Tensor packed_, scale_;
    Optional zero_;
};

// x[r] @ W_e.T for the rows r of each expert e, and zeros for rows of no expert. Experts without rows are not read.
Tensor experts_linear(const Tensor& x, const Tensor& offsets, const Tensor& packed, const Tensor& scale,
                      const Optional& zero, const std::vector<int64_t>& bits, int64_t out_features, int64_t group_size,
                      int64_t activation_bits, int64_t layout) {
    check_rows(x, activation_bits);
    const int64_t rows = x.size(0), in_features = x.size(1);
    const int64_t experts = checked_experts(offsets, kCpu);
    const std::vector<int64_t> bounds = checked_offsets(offsets, rows);
    const ExpertWeights weights(packed, scale, zero, bits, experts, out_features, in_features, group_size, layout);
    if (x.scalar_type() == ScalarType::Double) {  // all checks are done: an error in it would lose its message
        return reference_experts_linear(x, offsets, packed, scale, zero, bits, out_features, group_size,
                                        activation_bits, layout);
    }
    const Tensor flat = as_contiguous(x), y = torch::stable::new_empty(x, {rows, out_features});
    const Scalar type = scalar(x.scalar_type());
    const int64_t x_row = in_features * size_of(type), y_row = out_features * size_of(type);
    const auto* from = static_cast<const char*>(flat.const_data_ptr());
    auto* to = static_cast<char*>(y.mutable_data_ptr());
    std::vector<Linear> layers;
    for (int64_t e = 0; e < experts; e++) {
        if (bounds[e] < bounds[e + 1]) {
            layers.push_back({weights.weight(e),
                              from + bounds[e] * x_row,
                              to + bounds[e] * y_row,
                              type,
                              bounds[e + 1] - bounds[e],
                              nullptr,
                              {0, 0},
                              static_cast<int>(activation_bits)});
        }
    }
    grouped_linear(layers, torch_threads());
    const int64_t routed = bounds.back();
    if (routed < rows) {
        std::memset(to + routed * y_row, 0, (rows - routed) * y_row);
    }
    return y;
}

}  // namespace
}  // namespace qaig

STABLE_TORCH_LIBRARY_IMPL(qaig, CPU, m) { m.impl("experts_linear", TORCH_BOX(&qaig::experts_linear)); }
