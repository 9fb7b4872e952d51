// The arguments of a kernel: views of the tensors of one linear layer, without torch.
#pragma once

#include "cpu/layout.h"

namespace qaig {

enum class Scalar : int { f32, f16, bf16 };

constexpr int64_t size_of(Scalar type) { return type == Scalar::f32 ? 4 : 2; }

// A packed weight, in CPU layout or in the checkpoint layout of compressed-tensors (`formats/packing.py`).
struct Weight {
    Shape shape;
    bool in_checkpoint_layout;
    const uint32_t* words;
    const void* scale;
    Scalar scale_type;
    const void* zero;  // uint8 in CPU layout, uint32 words in checkpoint layout; nullptr: symmetric, 2^(bits - 1)
};

// Runs body(context, begin, end) over disjoint parts of [0, size), on as many threads as torch would use.
using Body = void (*)(void* context, int64_t begin, int64_t end);
struct Parallel {
    void (*run)(int64_t size, void* context, Body body);
    int threads;
};

// The rotation of x: signs from `seed`, then a Hadamard transform of every `block` channels. Block 0 is no rotation.
struct Rotation {
    int64_t block;
    uint64_t seed;
};

// y = (x R) W' + bias
struct Linear {
    Weight weight;
    const void* x;  // [rows][in_features], `type`, contiguous
    void* y;        // [rows][out_features], `type`, contiguous
    Scalar type;
    int64_t rows;
    const float* bias;  // [out_features] or nullptr
    Rotation rotation;
    int activation_bits;  // 16 or 8
};

}  // namespace qaig
