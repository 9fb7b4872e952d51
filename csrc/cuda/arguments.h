// The arguments of the CUDA kernels.
//
// Without torch and without standard headers, because NVRTC has none. Device code, the launcher of the compiled library
// (host/launch.cu) and Python, which launches the same kernels from cubins that NVRTC made, all read this.
//
// Every kernel is `extern "C" __global__ void NAME(const ARGUMENTS)`: one structure, by value. Structures are plain and
// aligned as in C (ctypes.Structure with the same fields in the same order has their bytes).
//
//   file            kernels                                               arguments           block  grid
//   w{2,3,4,8}.cu   qaig_decode_w{bits}_{f16,bf16}_m{8,16}                QaigDecode            128  decode_grid()
//                   qaig_fused_w{bits}_{f16,bf16}                         QaigDecode            128  tiled_grid()
//                   qaig_integer_w{bits}_{f16,bf16}                       QaigDecode            128  tiled_grid()
//                   qaig_dequantize_w{bits}                               QaigDequantize        128  dequantize_grid_*()
//   mixed.cu        qaig_decode_mixed_{f16,bf16}_m{8,16}                  QaigDecode            128  decode_grid()
//   arrange.cu      qaig_arrange_{f16,bf16}                               QaigArrange           256  rows
//   columns.cu      qaig_round_columns                                    QaigColumns           128  columns_grid()
//
// Dynamic shared memory: decode_shared_bytes(), fused_shared_bytes() and integer_shared_bytes(), never more than the 48
// KiB that need no attribute; other kernels take none. Below compute capability 8.0 the fused and the integer kernels are
// empty: they are not launched.
// NVRTC needs `-I csrc` and C++17, no header of the toolkit.
//
// No kernel waits for another block, allocates or synchronizes: all can be captured in a CUDA graph and replayed.
#pragma once

#include "cuda/layout.h"

// Element types.
enum QaigType { QAIG_F32 = 0, QAIG_F16 = 1, QAIG_BF16 = 2 };

enum { QAIG_MOST_LAYERS = 8, QAIG_MOST_ROWS = 16 };

// One weight, in the order of layout.h, and what it is multiplied with.
struct QaigLayer {
    const void* words;          // 16-byte aligned
    const void* scale;          // 16-byte aligned
    const unsigned char* zero;  // 8-byte aligned; null: symmetric
    const void* bias;           // [out_features] or null
    const void* x;              // [rows][x_stride], 16-byte aligned, see QaigDecode
    const float* token_scale;   // [rows] or null: y = token_scale * (x W') + bias
    void* y;                    // [rows][out_features]
    long long x_stride;         // elements from row to row, a multiple of 8
    int x_slots;                // elements of a row that are there, a multiple of 8: slots from there on count as 0
    int out_features, in_features, group_size;  // group_size in channels: in_features if there is one group a row
    int bits;                                   // 2, 3, 4 or 8
    int scale_type;                             // QAIG_F16 or QAIG_BF16
    int bias_type;                              // any QaigType
    int reserved;
};

// Decode: y = x W' + bias for a few rows of x and up to QAIG_MOST_LAYERS weights, sums in float32.
//
// x holds a row's slots, in the element type of the kernel's name. Where Shape::in_channel_order(), in_features % 8 is
// 0 and x is aligned, that is x itself: x_stride = x_slots = in_features. Else let qaig_arrange_* write it.
//
// The kernel of a width takes layers of that width, the mixed one any. _m8 takes up to 8 rows, _m16 up to 16.
//
// Blocks share the work by bytes, so several may meet in one row block. Each then leaves its sums in `partials`, and
// the last to arrive adds them up, always in the same order: results do not depend on timing. `counters` says who is
// last. It must be zero before the first launch and is zero after each one; launches that may run at the same time
// must not share either buffer.
//
// The fused kernels do the same, with the same arguments, for up to kMostTiledRows rows of x. All layers of a launch
// have its kernel's width.
//
// The integer kernels are the same for x as qaig_arrange_* writes it as `bytes`, with its token_scale: x_stride is 2
// slots, in bytes, and x_slots are all slots.
struct QaigDecode {
    float* partials;     // decode_partial_bytes() or tiled_partial_bytes(); undefined content; 16-byte aligned
    unsigned* counters;  // decode_counters() or tiled_counters() of them, zero
    int rows;            // 1 to QAIG_MOST_ROWS, fused and integer: to kMostTiledRows
    int layer_count;
    QaigLayer layers[QAIG_MOST_LAYERS];
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
// divided by max(|x|, 1e-5) / 127 and rounded to integers (`reference.round_activations`). Before it is rounded, and
// not without that, a row may be rotated in float32, to the bit as `hadamard.rotate` does; x is then 16-byte aligned.
//
// Integers are stored in one of two ways:
//   in x's type, divided by kIntegers, so that float16 does not overflow in sums of them where it would not in those
//     of x; token_scale is max(|x|, 1e-5) / 127 * kIntegers
//   as `bytes`, in the order of byte_place(), in the first half of each row; token_scale is max(|x|, 1e-5) / 127
//
// A row with a value that is not finite or beyond 1e30 is not rounded: it is stored in x's type, in slot order. Its
// token_scale is 1; with `bytes` kNotRounded, or NaN if there is a NaN in it, as there will be in all products.
struct QaigArrange {
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

// Columns of a weight that are rounded one after the other, the later ones making up for what the earlier ones lose: what
// rounding/columns.py says, with its names.
struct QaigColumns {
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
    int count;                            // 1 to kMostColumns
    int group_count, max_code;
};
