// The names and arguments of the CUDA kernels.
//
// It includes neither torch nor standard headers, because NVRTC has none. Device code and the launcher of the compiled
// library (host/launch.cu) include it. Python launches the same kernels from cubins of NVRTC, and mirrors it.
//
// Every kernel is `extern "C" __global__ void NAME(const ARGUMENTS)`: one structure, by value. Structures are plain and
// aligned as in C (ctypes.Structure with the same fields in the same order has their bytes).
//
//   file of kernels/          kernels                                       arguments                block  grid
//   w{2,3,4,8}.cu             qaig_gemv_w{bits}_{f16,bf16}_m{8,16}          QaigMatmul               128    gemv_grid()
//                             qaig_gemm_f16_w{bits}_{f16,bf16}              QaigMatmul               128    gemm_grid()
//                             qaig_gemm_i8_w{bits}_{f16,bf16}               QaigMatmul               128    gemm_grid()
//                             qaig_dequantize_w{bits}                       QaigDequantize           128    dequantize_grid_*()
//   mixed.cu                  qaig_gemv_mixed_{f16,bf16}_m{8,16}            QaigMatmul               128    gemv_grid()
//   experts_w{2,3,4,8}.cu     qaig_experts_gemv_w{bits}_{f16,bf16}_m{8,16}  QaigExperts              128    see launch_experts.cu
//                             qaig_experts_gemm_w{bits}_{f16,bf16}          QaigExperts              128    see launch_experts.cu
//   quantize_activations.cu   qaig_quantize_activations_{f16,bf16}          QaigQuantizeActivations  256    rows
//   gptq_columns.cu           qaig_gptq_columns                             QaigGptqColumns          128    gptq_columns_grid()
//
// The type after the width is that of y. gemm_f16 multiplies 16-bit floats of either type, gemm_i8 multiplies bytes.
//
// Dynamic shared memory: gemv_shared_bytes(), gemm_f16_shared_bytes() and gemm_i8_shared_bytes(). It never exceeds 48
// KiB, the most that needs no attribute. Other kernels use none. Below compute capability 8.0 the gemm kernels are
// empty, and never launched. NVRTC needs `-I csrc` and C++17, no header of the toolkit.
//
// No kernel waits for another block, allocates or synchronizes. So a CUDA graph can capture and replay all of them.
#pragma once

#include "cuda/layout.h"

// Element types.
enum QaigType { QAIG_F32 = 0, QAIG_F16 = 1, QAIG_BF16 = 2 };

enum { QAIG_MAX_LAYERS = 8, QAIG_MAX_GEMV_ROWS = 16, QAIG_MAX_EXPERTS = 1024 };

// One layer: a weight in the layout of layout.h, and its x, bias and y.
struct QaigLayer {
    const void* words;                          // 16-byte aligned
    const void* scale;                          // 16-byte aligned
    const unsigned char* zero;                  // 8-byte aligned; null: symmetric
    const void* bias;                           // [out_features] or null
    const void* x;                              // [rows][x_stride], 16-byte aligned, see QaigMatmul
    const float* token_scale;                   // [rows] or null: y = token_scale * (x W') + bias
    void* y;                                    // [rows][out_features]
    long long x_stride;                         // elements from row to row, a multiple of 8
    int x_slots;                                // elements of a row in memory, a multiple of 8: later slots count as 0
    int out_features, in_features, group_size;  // group_size in channels: in_features if there is one group a row
    int bits;                                   // 2, 3, 4 or 8
    int scale_type;                             // QAIG_F16 or QAIG_BF16
    int bias_type;                              // any QaigType
};

// y = x W' + bias for up to QAIG_MAX_LAYERS weights, with sums in float32.
//
// gemv: x has up to QAIG_MAX_GEMV_ROWS rows of slots, in the element type of the kernel's name. Where
// Shape::in_channel_order(), in_features % 8 is 0 and x is aligned, that is x itself: x_stride = x_slots = in_features.
// Else qaig_quantize_activations_* writes it. The kernel of a width takes layers of that width, the mixed one any. _m8
// takes up to 8 rows, _m16 up to 16.
//
// gemm_f16: the same x, up to kMaxGemmRows rows. All layers of a launch have its kernel's width.
//
// gemm_i8: as gemm_f16, but x is what qaig_quantize_activations_* writes as `bytes`, with its token_scale. x_stride is
// 2 slots, in bytes, and x_slots are all slots.
//
// Blocks share the work by bytes (stream-K), so several may have parts of one row block or output tile. Each of them
// then writes its sums to the workspace. The last one adds them up, always in the same order (split-K reduction), so
// results do not depend on timing. A semaphore tells which block is the last. Semaphores are zero before the first
// launch and after every launch. Launches that may run at the same time must not share workspace or semaphores.
struct QaigMatmul {
    float* workspace;      // gemv_workspace_bytes() or gemm_workspace_bytes(); undefined content; 16-byte aligned
    unsigned* semaphores;  // gemm_semaphores(), or for gemv the row blocks of all layers; zero
    int rows;              // 1 to QAIG_MAX_GEMV_ROWS, gemm: to kMaxGemmRows
    int layer_count;
    QaigLayer layers[QAIG_MAX_LAYERS];
};

// One projection of a stack of experts: y[r] = x[r] W_e' for the rows r of expert e, and 0 for rows of no expert.
//
// Expert e has the rows offsets[e] to offsets[e + 1], which the host does not know. Kernels clamp them to
// 0 to `rows`. The experts' words lie one after the other. So do their scales and zero points. x is as in
// QaigMatmul, for gemv and gemm_f16. A kernel multiplies the experts of its width.
struct QaigExperts {
    const void* words;  // as in QaigLayer
    const void* scale;
    const unsigned char* zero;
    const int* offsets;        // [experts + 1]
    const void* x;             // [rows][x_stride]
    const float* token_scale;  // [rows] or null
    void* y;                   // [rows][out_features]
    long long x_stride;
    int x_slots;
    int rows, experts;  // at most kMaxGemmRows and QAIG_MAX_EXPERTS
    int out_features, in_features, group_size;
    int scale_type;
    unsigned char bits[QAIG_MAX_EXPERTS];  // of each expert
};

// Rows [start, stop) of a weight, rounded once to `type`.
struct QaigDequantize {
    const void* words;
    const void* scale;
    const unsigned char* zero;
    void* out;  // [stop - start][in_features], 16-byte aligned
    int start, stop;
    int out_features, in_features, group_size, bits;
    int scale_type, type;  // any QaigType
};

// x in slot order: [rows][in_features] to [rows][slots], absent channels 0. With 8 activation bits each row is also
// divided by max(|x|, 1e-5) / 127 and rounded to integers (`reference.round_activations`). Only with
// them may a row be rotated first, in float32, to the bit as `hadamard.rotate` does. A rotated x is 16-byte aligned.
//
// Integers are stored in one of two ways:
//   in x's type, divided by kIntegerDivisor, so that float16 sums overflow no sooner than sums of x do;
//     token_scale is max(|x|, 1e-5) / 127 * kIntegerDivisor
//   as `bytes`, in the order of byte_place(), in the first half of each row; token_scale is max(|x|, 1e-5) / 127
//
// A row with a value that is not finite, or beyond 1e30, is not quantized. It is stored in x's type, in slot order. Its
// token_scale is 1. With `bytes` it is kNotQuantized, or NaN if the row has a NaN.
struct QaigQuantizeActivations {
    const void* x;
    void* out;           // [rows][slots] of x's type, 16-byte aligned
    float* token_scale;  // [rows], or null: 16 activation bits
    unsigned long long rotation_seed;
    int rotation_block;  // 0: not rotated; else has_rotation()
    int rows;
    int in_features, group_size;
    int slots;  // Shape::slots(), a multiple of 64
    int bytes;  // 0 or 1, with token_scale
};

// GPTQ's inner loop: rounds columns of a weight one after the other, and compensates each error in the later columns.
// The names are those of transformers_qaig/rounding/gptq_columns.py.
struct QaigGptqColumns {
    float* rows;              // [count][size], read and written
    float* errors;            // [count][size]
    unsigned char* codes;     // [count][size]
    const float* factor;      // [count][count], see factor_row; the upper triangle is used
    const long long* groups;  // [count]
    const float* step;        // [group_count][size], as scale and zero
    const float* scale;
    const float* zero;
    long long size;
    long long factor_row, factor_column;  // elements from one to the next
    int count;                            // 1 to kMaxGptqColumns
    int group_count, max_code;
};
