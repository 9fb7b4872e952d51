// The interface of the CUDA kernels: what is launched, with which arguments, and C functions that launch it.
//
// Without torch and without standard headers, because NVRTC has none: everything below is read by device code, by the
// launcher of the compiled library (launch.cu), and by whoever launches the same kernels from cubins that NVRTC made.
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
// NVRTC needs `-I csrc/cuda` and C++17, no header of the toolkit.
//
// No kernel waits for another block, allocates or synchronizes: all can be captured in a CUDA graph and replayed.
#pragma once

#include "layout.h"

// Element types.
enum QaigType { QAIG_F32 = 0, QAIG_F16 = 1, QAIG_BF16 = 2 };

// What the C functions return; above 1000 it is 1000 + a cudaError_t.
enum QaigStatus { QAIG_OK = 0, QAIG_BAD_ARGUMENT = 1, QAIG_UNSUPPORTED = 2, QAIG_CUDA_ERROR = 1000 };

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

namespace qaig {
namespace cuda {

constexpr int kDecodeWarps = 4;
constexpr int kDecodeThreads = 32 * kDecodeWarps;
constexpr int kDequantizeThreads = 128;
constexpr int kArrangeThreads = 256;
constexpr int kColumnsThreads = 128;
constexpr int kMostColumns = 32;
constexpr float kIntegers = 128;
constexpr float kNotRounded = 0;  // no row's token_scale: it is at least 1e-5 / 127
constexpr int kMixed = 0;         // stands for the bits of the mixed kernel

// Items each warp has in shared memory, being computed or on their way.
QAIG_BOTH int decode_stages(int bits) { return bits == 2 ? 6 : bits == 3 ? 4 : bits == 4 ? 3 : 2; }
// An item's words, and of two groups (one for each unit) scales and zero points of a row block.
QAIG_BOTH int decode_stage_bytes(int bits) { return bits * 512 + 2 * kBlockRows * 3; }
QAIG_BOTH int decode_warp_bytes(int bits) {
    return bits == kMixed ? decode_warp_bytes(8) : decode_stages(bits) * decode_stage_bytes(bits);  // 8's are the most
}
QAIG_BOTH int decode_columns(int rows) { return rows <= 8 ? 8 : 16; }  // the 8 or 16 of _m8 and _m16
// Blocks that a multiprocessor holds at once: as many as there are registers for.
QAIG_BOTH int decode_blocks_per_processor(int columns) { return columns == 8 ? 3 : 2; }
// The layers' Shape::items() times their bits, or their tiled_steps(), must add up to less than this.
constexpr long long kMostSteps = 1LL << 31;
QAIG_BOTH int decode_sum_bytes(int columns) { return kBlockRows * columns * 4; }
QAIG_BOTH int decode_shared_bytes(int bits, int columns) {
    return kDecodeWarps * decode_warp_bytes(bits) + decode_sum_bytes(columns);
}

// Blocks of a launch whose layers have `items` in all (Shape::items()), on a device of `processors` multiprocessors.
QAIG_BOTH int decode_grid(long long items, int processors, int columns) {
    const long long most = static_cast<long long>(processors) * decode_blocks_per_processor(columns);
    const long long useful = (items + kDecodeWarps - 1) / kDecodeWarps;
    return static_cast<int>(useful < most ? useful : most);
}
QAIG_BOTH long long decode_partial_bytes(int grid, int columns) { return 2LL * grid * decode_sum_bytes(columns); }
// decode_counters() is the sum of the layers' Shape::row_blocks().

// Kernels for many rows of x (pipeline.h): output tiles of 128 rows of the weight by 64 rows of x ("columns").
constexpr int kTiledWarps = 4;
constexpr int kTiledThreads = 32 * kTiledWarps;
constexpr int kTiledRowBlocks = 2;
constexpr int kTiledColumns = 64;
constexpr int kTiledBlocksPerProcessor = 2;    // that a multiprocessor holds at once: registers
constexpr int kLeastTiledSteps = 16;           // of a block: with fewer, adding up parts takes longer; an estimate
constexpr int kTiledCapability = 80;           // earlier GPUs lack asynchronous copies
constexpr int kMostTiledRows = (1 << 20) - 1;  // of x

QAIG_BOTH int tiled_column_tiles(int rows) { return (rows + kTiledColumns - 1) / kTiledColumns; }
QAIG_BOTH long long tiled_outputs(const Shape& s, int rows) {  // tiles
    const long long row_tiles = (s.row_blocks() + kTiledRowBlocks - 1) / kTiledRowBlocks;
    return row_tiles * tiled_column_tiles(rows);
}
QAIG_BOTH long long tiled_steps(const Shape& s, int rows) { return tiled_outputs(s, rows) * s.tiles(); }
// Words of two row blocks and x, 64 slots each.
QAIG_BOTH int tiled_stage_bytes(int bits, int element_bytes) {
    return kTiledRowBlocks * bits * 512 + kTiledColumns * kTileSlots * element_bytes;
}
// Blocks of a launch whose layers have so many steps in all, fewer than kMostSteps.
QAIG_BOTH int tiled_grid(long long steps, int processors) {
    const long long most = static_cast<long long>(processors) * kTiledBlocksPerProcessor;
    const long long useful = (steps + kLeastTiledSteps - 1) / kLeastTiledSteps;
    return static_cast<int>(useful < most ? useful : most);
}
QAIG_BOTH long long tiled_partial_bytes(int grid) {
    return 2LL * grid * kTiledRowBlocks * kBlockRows * kTiledColumns * 4;
}
QAIG_BOTH long long tiled_counters(long long outputs) { return outputs * kTiledWarps; }

QAIG_BOTH int fused_stages(int bits) { return bits == 8 ? 3 : 4; }
QAIG_BOTH int fused_shared_bytes(int bits) { return fused_stages(bits) * tiled_stage_bytes(bits, 2); }

constexpr int kIntegerStages = 4;
QAIG_BOTH int integer_shared_bytes(int bits) { return kIntegerStages * tiled_stage_bytes(bits, 1); }

// Whether in_features channels can be rotated `block` at a time.
QAIG_BOTH bool has_rotation(int block, int in_features) {
    return block >= 16 && block <= 256 && (block & (block - 1)) == 0 && in_features % block == 0;
}

QAIG_BOTH int columns_grid(long long size) { return static_cast<int>((size + kColumnsThreads - 1) / kColumnsThreads); }

QAIG_BOTH int dequantize_grid_x(const Shape& s) { return (s.tiles() + 3) / 4; }
QAIG_BOTH int dequantize_grid_y(int start, int stop) {
    return (stop + kBlockRows - 1) / kBlockRows - start / kBlockRows;
}
// How far a launch of rows from `start` on may go, so that the grid is not too high.
constexpr int kMostGridY = 65535;
QAIG_BOTH int dequantize_stop(int start, int stop) {
    const long long most = (start / kBlockRows + kMostGridY) * static_cast<long long>(kBlockRows);
    return stop < most ? stop : static_cast<int>(most);
}

}  // namespace cuda
}  // namespace qaig

// The compiled library's launcher. `stream` is a cudaStream_t of the current device. Sizes and alignments are checked
// against each other; that pointers reach as far as the sizes say is the caller's word.
#if !defined(__CUDACC_RTC__)
extern "C" {
// Multiprocessors and compute capability (90 for 9.0) of the current device; asked once for each device.
int qaig_cuda_device(int* processors, int* capability);
// Bytes of QaigDecode.partials, and number of its counters, for the decode, the fused and the integer kernels.
int qaig_cuda_decode_workspace(const QaigDecode* decode, long long* partial_bytes, long long* counters);
int qaig_cuda_fused_workspace(const QaigDecode* fused, long long* partial_bytes, long long* counters);
int qaig_cuda_integer_workspace(const QaigDecode* integer, long long* partial_bytes, long long* counters);
int qaig_cuda_decode(const QaigDecode* decode, int type, void* stream);
int qaig_cuda_fused(const QaigDecode* fused, int type, void* stream);
int qaig_cuda_integer(const QaigDecode* integer, int type, void* stream);  // the type of y
int qaig_cuda_dequantize(const QaigDequantize* dequantize, void* stream);
int qaig_cuda_arrange(const QaigArrange* arrange, int type, void* stream);
int qaig_cuda_round_columns(const QaigColumns* columns, void* stream);
// `count` zeros that every launch leaves as zeros, for launches on `stream` of the current device; null if there are no
// more, or not yet and the stream is captured in a CUDA graph: the caller then brings its own. Launches that may run at
// the same time share none: each stream has its own and, as a graph may be replayed beside other work of the stream it
// was captured on, each stream within a graph. They stay valid as long as the process lives.
int qaig_cuda_counters(void* stream, long long count, unsigned** counters);
// What a status means, in English.
const char* qaig_cuda_message(int status);
}
#endif
