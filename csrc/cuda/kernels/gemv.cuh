// gemv: y = x W' + bias for up to 16 rows of x, by weights of one width or of several.
//
// The work items of all layers form one sequence, of which every block takes an equal part: stream-K (schedule.cuh).
#pragma once

#include "cuda/kernels/gemv_mainloop.cuh"

namespace qaig {
namespace cuda {

template <class T, int bits, int columns, int kernel_bits = bits>
QAIG_DEVICE void run_gemv(const QaigMatmul& d, int index, const StreamK& schedule, unsigned start, int semaphore,
                          int begin, int end, uint4* shared) {
    auto layer = gemv_layer<T, bits, columns, true, kernel_bits>(d.layers[index], d.rows, shared);
    layer.workspace = d.workspace;
    layer.schedule = schedule;
    layer.start = start;
    layer.semaphores = d.semaphores + semaphore;
    layer.run(begin, end);
}

// The kernel's body. If `bits` is kMixedBits, each layer has its own width.
template <class T, int bits, int columns>
QAIG_DEVICE void gemv(const QaigMatmul& d) {
    QAIG_DYNAMIC_SHARED(shared);
    const StreamK schedule = gemv_schedule(d, gridDim.x);
    const unsigned from = schedule.begin_of(blockIdx.x), to = schedule.begin_of(blockIdx.x + 1);
    unsigned start = 0;
    int semaphore = 0;
    for (int i = 0; i < d.layer_count; i++) {
        const QaigLayer& l = d.layers[i];
        const Shape s = shape_of(l);
        const unsigned items = static_cast<unsigned>(s.work_items()), width = bits == kMixedBits ? l.bits : bits;
        const int begin = first_work_item(from, start, items, width), end = first_work_item(to, start, items, width);
        if (begin < end) {
            if constexpr (bits != kMixedBits) {
                run_gemv<T, bits, columns>(d, i, schedule, start, semaphore, begin, end, shared);
            } else if (l.bits == 2) {
                run_gemv<T, 2, columns, kMixedBits>(d, i, schedule, start, semaphore, begin, end, shared);
            } else if (l.bits == 3) {
                run_gemv<T, 3, columns, kMixedBits>(d, i, schedule, start, semaphore, begin, end, shared);
            } else if (l.bits == 4) {
                run_gemv<T, 4, columns, kMixedBits>(d, i, schedule, start, semaphore, begin, end, shared);
            } else {
                run_gemv<T, 8, columns, kMixedBits>(d, i, schedule, start, semaphore, begin, end, shared);
            }
        }
        start += items * width;
        semaphore += s.row_blocks();
    }
}

}  // namespace cuda
}  // namespace qaig

#define QAIG_GEMV_KERNEL(name, type, bits, columns)                                                   \
    extern "C" __global__ void __launch_bounds__(128, qaig::cuda::gemv_blocks_per_processor(columns)) \
        name(QAIG_ARGUMENT QaigMatmul d) {                                                            \
        qaig::cuda::gemv<qaig::cuda::type, bits, columns>(d);                                         \
    }

// The four gemv kernels of one width. `width` is how names write it: w2, w3, w4, w8 or mixed.
#define QAIG_GEMV_KERNELS(width, bits)                           \
    QAIG_GEMV_KERNEL(qaig_gemv_##width##_f16_m8, F16, bits, 8)   \
    QAIG_GEMV_KERNEL(qaig_gemv_##width##_f16_m16, F16, bits, 16) \
    QAIG_GEMV_KERNEL(qaig_gemv_##width##_bf16_m8, BF16, bits, 8) \
    QAIG_GEMV_KERNEL(qaig_gemv_##width##_bf16_m16, BF16, bits, 16)
