// Checks the arguments of operators, with the same messages on every device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace qaig {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

constexpr int kCpu = -1;  // otherwise the number of a GPU
constexpr std::initializer_list<ScalarType> kScaleTypes = {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float};

inline std::string shape_text(const std::vector<int64_t>& shape) {
    std::ostringstream out;
    out << "(";
    for (size_t i = 0; i < shape.size(); i++) {
        out << (i ? ", " : "") << shape[i];
    }
    out << (shape.size() == 1 ? ",)" : ")");
    return out.str();
}

inline std::vector<int64_t> shape_of(const Tensor& t) {
    std::vector<int64_t> shape(t.dim());
    for (size_t i = 0; i < shape.size(); i++) {
        shape[i] = t.size(i);
    }
    return shape;
}

inline std::string dtype_name(ScalarType type) {
    switch (type) {
        case ScalarType::Float: return "float32";
        case ScalarType::Double: return "float64";
        case ScalarType::Half: return "float16";
        case ScalarType::BFloat16: return "bfloat16";
        case ScalarType::Int: return "int32";
        case ScalarType::Byte: return "uint8";
        default: return torch::headeronly::toString(type);
    }
}

inline std::string dtype_names(std::initializer_list<ScalarType> types) {
    std::string names;
    for (const ScalarType type : types) {
        names += (names.empty() ? "" : ", ") + dtype_name(type);
    }
    return names;
}

inline bool has_shape(const Tensor& t, std::initializer_list<int64_t> shape) {
    if (t.dim() != static_cast<int64_t>(shape.size())) {
        return false;
    }
    int64_t i = 0;
    for (const int64_t size : shape) {
        if (t.size(i++) != size) {
            return false;
        }
    }
    return true;
}

// Checks that the memory of t holds all of its elements: FSDP and others free a tensor's memory between uses, and keep
// its shape. Torch made the sizes and strides, so their products fit in 64 bits.
inline void check_storage(const char* name, const Tensor& t) {
    int64_t last = t.storage_offset(), bytes = 0;
    for (int64_t i = 0; i < t.dim(); i++) {
        if (t.size(i) == 0) {
            return;
        }
        last += (t.size(i) - 1) * t.stride(i);
    }
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
    const int64_t needed = (last + 1) * static_cast<int64_t>(t.element_size());
    STD_TORCH_CHECK(needed <= bytes, name, " has memory of ", bytes, " bytes, and its shape ", shape_text(shape_of(t)),
                    " needs ", needed, ": it was freed, as FSDP does between uses. Gather the parameters first");
}

inline bool is_on(const Tensor& t, int device) {
    return device == kCpu ? t.is_cpu() : t.is_cuda() && t.get_device() == device;
}

inline std::string device_name(int device) { return device == kCpu ? "the CPU" : "GPU " + std::to_string(device); }

// Messages are built on failure only: these checks run for every tensor of every call.
inline void check_dtype(const char* name, const Tensor& t, std::initializer_list<ScalarType> types) {
    const ScalarType type = t.scalar_type();
    STD_TORCH_CHECK(std::find(types.begin(), types.end(), type) != types.end(), name, " must have dtype ",
                    dtype_names(types), ", got ", dtype_name(type));
}

inline void check_matrix(const char* name, const Tensor& t) {
    STD_TORCH_CHECK(t.dim() == 2, name, " must have two dimensions, got shape ", shape_text(shape_of(t)));
}

inline void check_tensor(const char* name, const Tensor& t, std::initializer_list<int64_t> shape,
                         std::initializer_list<ScalarType> types, int device = kCpu) {
    check_dtype(name, t, types);
    STD_TORCH_CHECK(is_on(t, device), name, " is not on ", device_name(device),
                    " but the input is: move both to one device");
    STD_TORCH_CHECK(has_shape(t, shape), name, " must have shape ", shape_text(shape), ", got ",
                    shape_text(shape_of(t)),
                    ": the packed weight does not match its layer (in_features, out_features, bits, group_size)");
    check_storage(name, t);
}

inline Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

inline int64_t words_for(int64_t codes, int64_t bits) { return (codes * bits + 31) / 32; }

// Sums and products of sizes that a caller gives. On overflow they are the largest integer, which no tensor has as a
// size.
inline int64_t bounded_sum(int64_t a, int64_t b) {
    int64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? INT64_MAX : sum;
}

inline int64_t bounded_product(int64_t a, int64_t b) {
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

// Returns the channels of a group. Checks that the sizes agree, and fit in 31 bits: no product of two overflows.
inline int64_t checked_group(int64_t out_features, int64_t in_features, int64_t bits, int64_t group_size) {
    constexpr int64_t kMost = int64_t{1} << 31;
    STD_TORCH_CHECK(bits >= 2 && bits <= 8, "bits must be between 2 and 8, got ", bits);
    STD_TORCH_CHECK(out_features >= 1 && out_features < kMost && in_features >= 1 && in_features < kMost,
                    "out_features and in_features must be positive and below 2^31, got ", out_features, " and ",
                    in_features);
    STD_TORCH_CHECK(group_size == -1 || (group_size >= 1 && in_features % group_size == 0),
                    "group_size must be -1 (per channel) or divide in_features=", in_features, ", got ", group_size,
                    ": choose a divisor, or -1");
    return group_size == -1 ? in_features : group_size;
}

// Checks the tensors of a packed weight, or of a stack of experts, in any layout.
inline void check_packed(const Tensor& packed, std::initializer_list<int64_t> packed_shape, const Tensor& scale,
                         std::initializer_list<int64_t> scale_shape, const Optional& zero,
                         std::initializer_list<int64_t> zero_shape, ScalarType zero_type, int device) {
    check_tensor("packed", packed, packed_shape, {ScalarType::Int}, device);
    check_tensor("scale", scale, scale_shape, kScaleTypes, device);
    if (zero) {
        check_tensor("zero", *zero, zero_shape, {zero_type}, device);
    }
}

// Checks a weight in the checkpoint layout, which every device takes.
inline void check_checkpoint_layout(const Tensor& packed, const Tensor& scale, const Optional& zero,
                                    int64_t out_features, int64_t in_features, int64_t bits, int64_t groups,
                                    int device) {
    check_packed(packed, {out_features, words_for(in_features, bits)}, scale, {out_features, groups}, zero,
                 {words_for(out_features, bits), groups}, ScalarType::Int, device);
}

inline void check_bias(const Tensor& bias, int64_t out_features, int device) {
    check_tensor("bias", bias, {out_features},
                 {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float, ScalarType::Double}, device);
}

// Checks a range of rows or columns, which `what` names, of a weight that has `size` of them.
inline void check_range(const char* what, int64_t start, int64_t stop, int64_t size) {
    STD_TORCH_CHECK(0 <= start && start <= stop && stop <= size, what, " ", start, " to ", stop, " are not within the ",
                    size, " of the weight");
}

inline void check_activation(const char* name, const Tensor& x) {
    const auto type = x.scalar_type();
    STD_TORCH_CHECK(x.dim() > 0 && (type == ScalarType::Float || type == ScalarType::Half ||
                                    type == ScalarType::BFloat16 || type == ScalarType::Double),
                    name, " must be a floating tensor with at least one dimension, got ", dtype_name(type),
                    " of shape ", shape_text(shape_of(x)));
    check_storage(name, x);
}

// A rotation of x (formats/hadamard.py); block 0 is none.
inline void check_rotation(int64_t block, int64_t seed, int64_t in_features) {
    constexpr int64_t kLeast = 16, kLargest = 256;
    STD_TORCH_CHECK(
        block == 0 || (block >= kLeast && block <= kLargest && (block & (block - 1)) == 0 && in_features % block == 0),
        "rotation: block must be one of (16, 32, 64, 128, 256) that divides in_features=", in_features, ", got ",
        block);
    STD_TORCH_CHECK(seed >= 0, "rotation: seed must be between 0 and 2^63 - 1, got ", seed);
}

// The number of layers in the arguments of linear_many, which are lists with an entry for each layer.
template <class... Lists>
size_t checked_count(const std::vector<Tensor>& packed, const Lists&... others) {
    const size_t count = packed.size();
    STD_TORCH_CHECK(((others.size() == count) && ...),
                    "packed, scale, zero, bias, rotation_block, rotation_seed, out_features, bits and group_size must "
                    "have one entry per layer");
    return count;
}

// Checks the input of a product.
inline void check_input(const Tensor& x, int64_t activation_bits) {
    check_activation("x", x);
    STD_TORCH_CHECK(activation_bits == 16 || activation_bits == 8, "activation_bits=", activation_bits,
                    " has no kernel here: use 16 or 8");
}

}  // namespace qaig
