// Chooses the kernel that multiplies a layer.
#pragma once

#include "cuda/geometry.h"
#include "cuda/tuning.h"
#include "ops/cuda/weight.h"

namespace qaig {
namespace [[gnu::visibility("hidden")]] cuda_ops {  // as torch's types are

constexpr int64_t kMaxQuantizedRows = (1LL << 31) - 1;  // of x, rounded to 8 bits: a launch has a block for each

// What multiplies a layer: a kernel that reads packed words (gemv, gemm), torch with the dequantized weight, or plain
// torch (formats/reference.py).
enum class MatmulKernel { kGemv, kGemmF16, kGemmI8, kDequantize, kReference };

// Group size of the slot order in which gemv and gemm read x.
inline int packed_input_group(const cuda::Shape& s) { return s.in_channel_order() ? s.in_features : s.group_size; }

struct Layer {
    const PackedWeight* weight;
    const Optional* bias;
    int64_t rotation_block, rotation_seed;
    Tensor y;  // [rows][out_features]
    MatmulKernel kernel;

    // Group size of the slot order that x must have: all channels, unless groups are padded.
    int input_group() const {
        const cuda::Shape& s = weight->shape;
        return kernel == MatmulKernel::kDequantize ? s.in_features : packed_input_group(s);
    }
};

// Rotated x that is not rounded takes the reference: in 16 bits it would lose precision, or overflow.
inline MatmulKernel choose_kernel(const PackedWeight& w, int64_t rows, bool round, bool rotate,
                                  const cuda::Tuning& tuning) {
    if ((rotate && !round) || (round && rows > kMaxQuantizedRows)) {
        return MatmulKernel::kReference;
    }
    if (w.scale.scalar_type() == ScalarType::Float) {
        return MatmulKernel::kDequantize;
    }
    if (rows <= tuning.max_gemv_rows) {
        return MatmulKernel::kGemv;
    }
    const bool fits = rows <= (round ? tuning.max_gemm_i8_rows : tuning.max_gemm_f16_rows) &&
                      cuda::gemm_k_steps(w.shape, static_cast<int>(rows)) < cuda::kMaxSteps / QAIG_MAX_LAYERS;
    return !fits ? MatmulKernel::kDequantize : round ? MatmulKernel::kGemmI8 : MatmulKernel::kGemmF16;
}

}  // namespace cuda_ops
}  // namespace qaig
