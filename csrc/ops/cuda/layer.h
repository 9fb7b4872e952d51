// A layer and the way it is multiplied.
#pragma once

#include "cuda/geometry.h"
#include "cuda/tuning.h"
#include "ops/cuda/weight.h"

namespace qaig {
namespace [[gnu::visibility("hidden")]] cuda_ops {  // as torch's types are

constexpr int64_t kMostRows = (1LL << 31) - 1;  // of x that are rounded to 8 bits: each is a block of a launch

// How a layer is multiplied: by the kernels that read packed words, by torch with the weight unpacked, or by the plain
// torch of nn/reference.py.
enum class Way { kDecode, kFused, kInteger, kDense, kReference };

struct Layer {
    const PackedWeight* weight;
    const Optional* bias;
    int64_t rotation_block, rotation_seed;
    Tensor y;  // [rows][out_features]
    Way way;

    // Channels of a group in the order of slots that x is to have: all of them, unless groups are padded.
    int input_group() const {
        const cuda::Shape& s = weight->shape;
        return way == Way::kDense || s.in_channel_order() ? s.in_features : s.group_size;
    }
};

// Rotated values that are not rounded to integers would lose more, or overflow, in 16 bits.
inline Way way_of(const PackedWeight& w, int64_t rows, bool round, bool rotate, const cuda::Tuning& tuning) {
    if ((rotate && !round) || (round && rows > kMostRows)) {
        return Way::kReference;
    }
    if (w.scale.scalar_type() == ScalarType::Float) {
        return Way::kDense;
    }
    if (rows <= tuning.most_decode_rows) {
        return Way::kDecode;
    }
    const bool fits = rows <= (round ? tuning.most_integer_rows : tuning.most_fused_rows) &&
                      cuda::tiled_steps(w.shape, static_cast<int>(rows)) < cuda::kMostSteps / QAIG_MOST_LAYERS;
    return !fits ? Way::kDense : round ? Way::kInteger : Way::kFused;
}

}  // namespace cuda_ops
}  // namespace qaig
