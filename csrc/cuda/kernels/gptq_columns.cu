// GPTQ's inner loop (transformers_qaig/rounding/gptq_columns.py): rounds columns of a weight one after the other. A
// thread has one row of the weight, and its columns in registers.
#include "cuda/device/elements.cuh"
#include "cuda/geometry.h"

namespace qaig {
namespace cuda {
namespace {

QAIG_DEVICE void gptq_columns(const QaigGptqColumns& c) {
    QAIG_SHARED_ARRAY(float, factor, kMaxGptqColumns* kMaxGptqColumns);
    for (int i = threadIdx.x; i < c.count * c.count; i += kGptqThreads) {
        const int row = i / c.count, column = i % c.count;
        store_shared(factor + row * kMaxGptqColumns + column,
                     load_float(c.factor, QAIG_F32, row * c.factor_row + column * c.factor_column));
    }
    block_barrier();
    const long long at = static_cast<long long>(blockIdx.x) * kGptqThreads + threadIdx.x;
    if (at >= c.size) {
        return;
    }
    float w[kMaxGptqColumns];
#pragma unroll
    for (int k = 0; k < kMaxGptqColumns; k++) {
        w[k] = k < c.count ? load_own(c.rows + k * c.size + at) : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kMaxGptqColumns; j++) {
        if (j < c.count) {
            // The low half of an int64. An index out of range becomes 0, so that no address is out of bounds.
            const unsigned group = load_global(reinterpret_cast<const uint2*>(c.groups + j)).x;
            const long long of_group = (group < static_cast<unsigned>(c.group_count) ? group : 0) * c.size + at;
            const float scale = load_float(c.scale, QAIG_F32, of_group), zero = load_float(c.zero, QAIG_F32, of_group);
            const float nearest = round_to_integer(divide(w[j], load_float(c.step, QAIG_F32, of_group)));
            const float low = -zero, high = static_cast<float>(c.max_code) - zero;
            const float code = nearest < low ? low : nearest > high ? high : nearest;  // minus the zero point
            const float error = divide(w[j] - multiply(code, scale), load_shared(factor + j * kMaxGptqColumns + j));
            store_global(c.rows + j * c.size + at, w[j]);
            store_global(c.errors + j * c.size + at, error);
            store_global(c.codes + j * c.size + at, static_cast<unsigned char>(static_cast<int>(code + zero)));
#pragma unroll
            for (int k = j + 1; k < kMaxGptqColumns; k++) {
                if (k < c.count) {
                    w[k] -= multiply(load_shared(factor + j * kMaxGptqColumns + k), error);
                }
            }
        }
    }
}

}  // namespace
}  // namespace cuda
}  // namespace qaig

extern "C" __global__ void __launch_bounds__(128) qaig_gptq_columns(QAIG_ARGUMENT QaigGptqColumns c) {
    qaig::cuda::gptq_columns(c);
}
