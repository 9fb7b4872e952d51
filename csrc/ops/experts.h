// Checks the arguments of experts_linear on every device, and finds where each expert's words begin
// (transformers_qaig/formats/experts.py).
#pragma once

#include <initializer_list>
#include <vector>

#include "ops/checks.h"

namespace qaig {
namespace [[gnu::visibility("hidden")]] experts_ops {  // as torch's types are

constexpr int64_t kMostExperts = 1 << 16;

inline int64_t checked_experts(const Tensor& offsets, int device) {
    STD_TORCH_CHECK(offsets.dim() == 1, "offsets must have one dimension, got shape ", shape_text(shape_of(offsets)));
    const int64_t experts = offsets.numel() - 1;
    STD_TORCH_CHECK(1 <= experts && experts <= kMostExperts, "a stack must have 1 to ", kMostExperts,
                    " experts, got offsets of shape (", experts + 1, ",)");
    check_tensor("offsets", offsets, {experts + 1}, {ScalarType::Int}, device);
    return experts;
}

inline void check_rows(const Tensor& x, int64_t activation_bits) {
    check_input(x, activation_bits);
    check_matrix("x", x);
}

// Checks the sizes of a stack, and returns the channels of a group.
inline int64_t checked_group(const std::vector<int64_t>& bits, int64_t experts, int64_t out_features,
                             int64_t in_features, int64_t group_size) {
    STD_TORCH_CHECK(bits.size() == 1 || static_cast<int64_t>(bits.size()) == experts,
                    "bits must have one entry, or one for each of ", experts, " experts, got ", bits.size());
    int64_t channels = 0;
    for (const int64_t width : bits) {
        channels = qaig::checked_group(out_features, in_features, width, group_size);
    }
    return channels;
}

// Sizes of a stack in a kernel's layout. Each weight has `row_tiles` tiles of `tile_rows` rows. A tile has `tile_words`
// words for each bit.
struct KernelLayout {
    int64_t row_tiles, tile_rows, tile_words;
};

// Where the words and zero points of each expert begin. No sum or product overflows.
class Sections {
public:
    Sections(const std::vector<int64_t>& bits, int64_t experts, int64_t out_features, int64_t in_features,
             int64_t groups)
        : bits_(bits), experts_(experts), out_features_(out_features), in_features_(in_features), groups_(groups) {}

    int64_t bits_of(int64_t e) const { return bits_.size() == 1 ? bits_[0] : bits_[e]; }
    int64_t words(int64_t e) const { return words_[e]; }
    int64_t zeros(int64_t e) const { return zeros_[e]; }

    void check_checkpoint_layout(const Tensor& packed, const Tensor& scale, const Optional& zero, int device) {
        place([&](int64_t bits) { return bounded_product(out_features_, words_for(in_features_, bits)); },
              [&](int64_t bits) { return bounded_product(words_for(out_features_, bits), groups_); });
        check_packed(packed, {words_.back()}, scale, {experts_, out_features_, groups_}, zero, {zeros_.back()},
                     ScalarType::Int, device);
    }

    void check_kernel_layout(const KernelLayout& l, const Tensor& packed, const Tensor& scale, const Optional& zero,
                             int device) {
        place([&](int64_t bits) { return bounded_product(l.row_tiles, l.tile_words * bits); },
              [&](int64_t) { return bounded_product(l.row_tiles, groups_ * l.tile_rows); });
        check_packed(packed, {words_.back()}, scale, {experts_, l.row_tiles, groups_, l.tile_rows}, zero,
                     {experts_, l.row_tiles, groups_, l.tile_rows}, ScalarType::Byte, device);
    }

private:
    template <class Words, class Zeros>
    void place(Words words_of, Zeros zeros_of) {
        words_.assign(experts_ + 1, 0);
        zeros_.assign(experts_ + 1, 0);
        for (int64_t e = 0; e < experts_; e++) {
            words_[e + 1] = bounded_sum(words_[e], words_of(bits_of(e)));
            zeros_[e + 1] = bounded_sum(zeros_[e], zeros_of(bits_of(e)));
        }
    }

    const std::vector<int64_t>& bits_;
    int64_t experts_, out_features_, in_features_, groups_;
    std::vector<int64_t> words_, zeros_;
};

}  // namespace experts_ops
}  // namespace qaig
