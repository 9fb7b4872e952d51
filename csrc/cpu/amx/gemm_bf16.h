// The kernel of a gemm with AMX in bfloat16: x times dequantized weights. Sums stay in tiles over a block's segments.
#pragma once

#include "cpu/amx/block.h"

#if defined(__x86_64__)

QAIG_AMX_BEGIN

namespace qaig::amx {

struct MultiplyBf16 {
    template <int Sums, int X, int Weights>
    static QAIG_INLINE void into() {
        multiply_bf16<Sums, X, Weights>();
    }
};

class Bf16Kernel {
public:
    using Weights = Bf16Weights;

    Bf16Kernel(const Linear&, const Activations& a, const std::vector<Steps>& steps, int64_t, int64_t)
        : a_(a), steps_(steps) {}

    void set_qparams(int64_t, int, int64_t, const Bf16Weights&, Floats) {}

    void multiply(int64_t b, int batches, int64_t, int64_t first, int64_t last, const char* weights, float* out,
                  int64_t batch_stride) {
        const int64_t begin = steps_[first].before, end = steps_[last - 1].before + steps_[last - 1].count;
        (batches == 2 ? &Bf16Kernel::multiply_steps<2> : &Bf16Kernel::multiply_steps<1>)(a_, b, begin, end, weights,
                                                                                         out, batch_stride);
    }

    void finish() {}

private:
    template <int Batches>
    static void multiply_steps(const Activations& a, int64_t b, int64_t begin, int64_t end, const char* weights,
                               float* out, int64_t batch_stride) {
        const int64_t R = a.batch_rows, step_bytes = R * kRowBytes, tile_stride = R * kTileRows;
        const char* x = reinterpret_cast<const char*>(a.words.data() + b * a.batch_words) + begin * step_bytes;
        load<0>(out, kRowBytes);
        load<1>(out + tile_stride, kRowBytes);
        if constexpr (Batches == 2) {
            load<2>(out + batch_stride, kRowBytes);
            load<3>(out + batch_stride + tile_stride, kRowBytes);
        }
        for (int64_t step = begin; step < end; step++, x += step_bytes, weights += kPanelTiles * kTileBytes) {
            multiply_step<MultiplyBf16, Batches>(x, kRowBytes, a.batch_words * 4, weights);
        }
        store<0>(out, kRowBytes);
        store<1>(out + tile_stride, kRowBytes);
        if constexpr (Batches == 2) {
            store<2>(out + batch_stride, kRowBytes);
            store<3>(out + batch_stride + tile_stride, kRowBytes);
        }
    }

    const Activations& a_;
    const std::vector<Steps>& steps_;
};

}  // namespace qaig::amx

QAIG_TARGET_END

#endif
