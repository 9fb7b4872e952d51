// The operator experts_linear on the CPU: one projection of a stack of experts (transformers_qaig/formats/experts.py).
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/kernels.h"
#include "ops/checks.h"
#include "ops/cpu_weight.h"
#include "ops/reference.h"

namespace qaig {
namespace {

constexpr int64_t kMostExperts = 1 << 16;

// Where each expert's rows begin, [E + 1]: checked, so that every range lies within `rows`.
std::vector<int64_t> checked_offsets(const Tensor& offsets, int64_t rows) {
    STD_TORCH_CHECK(offsets.dim() == 1, "offsets must have one dimension, got shape ", shape_text(shape_of(offsets)));
    const int64_t count = offsets.numel();
    STD_TORCH_CHECK(2 <= count && count <= kMostExperts + 1, "a stack must have 1 to ", kMostExperts,
                    " experts, got offsets of shape (", count, ",)");
    check_tensor("offsets", offsets, {count}, {ScalarType::Int});
    const Tensor flat = as_contiguous(offsets);
    const auto* from = static_cast<const int32_t*>(flat.const_data_ptr());
    std::vector<int64_t> bounds(from, from + count);
    STD_TORCH_CHECK(bounds.front() == 0 && bounds.back() <= rows && std::is_sorted(bounds.begin(), bounds.end()),
                    "offsets must begin with 0, never decrease, and end at most at ", rows,
                    ", the number of rows, got ", shape_text(bounds), ": an index of an expert is out of range");
    return bounds;
}

// The packed tensors of a stack, checked; holds what its weights point to.
class ExpertWeights {
public:
    ExpertWeights(const Tensor& packed, const Tensor& scale, const Optional& zero, const std::vector<int64_t>& bits,
                  int64_t experts, int64_t out_features, int64_t in_features, int64_t group_size, int64_t layout)
        : bits_(bits), words_(experts + 1), zeros_(experts + 1) {
        STD_TORCH_CHECK(bits.size() == 1 || static_cast<int64_t>(bits.size()) == experts,
                        "bits must have one entry, or one for each of ", experts, " experts, got ", bits.size());
        for (const int64_t width : bits) {
            shape_ = checked_shape(out_features, in_features, width, group_size);
            in_checkpoint_layout_ = is_checkpoint_layout(layout, width);
        }
        const int64_t groups = shape_.groups(), tiles = shape_.tiles();
        for (int64_t e = 0; e < experts; e++) {
            words_[e + 1] = bounded_sum(words_[e], expert_words(bits_of(e)));
            zeros_[e + 1] = bounded_sum(zeros_[e], expert_zeros(bits_of(e)));
        }
        check_tensor("packed", packed, {words_.back()}, {ScalarType::Int});
        if (in_checkpoint_layout_) {
            check_tensor("scale", scale, {experts, out_features, groups}, kScaleTypes);
        } else {
            check_tensor("scale", scale, {experts, tiles, groups, kTileRows}, kScaleTypes);
        }
        if (zero && in_checkpoint_layout_) {
            check_tensor("zero", *zero, {zeros_.back()}, {ScalarType::Int});
        } else if (zero) {
            check_tensor("zero", *zero, {experts, tiles, groups, kTileRows}, {ScalarType::Byte});
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
        shape.bits = static_cast<int>(bits_of(e));
        return {shape,
                in_checkpoint_layout_,
                static_cast<const uint32_t*>(packed_.const_data_ptr()) + words_[e],
                static_cast<const char*>(scale_.const_data_ptr()) + e * rows * shape.groups() * size_of(type),
                type,
                zero_ ? static_cast<const char*>(zero_->const_data_ptr()) + zeros_[e] * zero_size : nullptr};
    }

private:
    int64_t bits_of(int64_t e) const { return bits_.size() == 1 ? bits_[0] : bits_[e]; }

    int64_t expert_words(int64_t bits) const {
        return in_checkpoint_layout_ ? bounded_product(shape_.out_features, words_for(shape_.in_features, bits))
                                     : bounded_product(shape_.tiles(), shape_.units() * bits * kTileRows);
    }

    int64_t expert_zeros(int64_t bits) const {
        return in_checkpoint_layout_ ? bounded_product(words_for(shape_.out_features, bits), shape_.groups())
                                     : bounded_product(shape_.tiles(), shape_.groups() * kTileRows);
    }

    Shape shape_ = {};  // with the bits of some expert
    bool in_checkpoint_layout_ = false;
    std::vector<int64_t> bits_, words_, zeros_;  // words_[e], zeros_[e]: where expert e begins
    Tensor packed_, scale_;
    Optional zero_;
};

// x[r] @ W_e.T for the rows r of each expert e, and zeros for rows of no expert. Experts without rows are not read.
Tensor experts_linear(const Tensor& x, const Tensor& offsets, const Tensor& packed, const Tensor& scale,
                      const Optional& zero, const std::vector<int64_t>& bits, int64_t out_features, int64_t group_size,
                      int64_t activation_bits, int64_t layout) {
    check_activation("x", x);
    STD_TORCH_CHECK(x.dim() == 2, "x must have two dimensions, got shape ", shape_text(shape_of(x)));
    check_activation_bits(activation_bits);
    if (x.scalar_type() == ScalarType::Double) {
        return call_operator("qaig::experts_linear_reference", x, offsets, packed, scale, zero, bits, out_features,
                             group_size, activation_bits, layout);
    }
    const int64_t rows = x.size(0), in_features = x.size(1);
    const std::vector<int64_t> bounds = checked_offsets(offsets, rows);
    const int64_t experts = static_cast<int64_t>(bounds.size()) - 1;
    const ExpertWeights weights(packed, scale, zero, bits, experts, out_features, in_features, group_size, layout);
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
