// Declares the kernels of every instruction set, and the functions that they share.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/activations.h"
#include "cpu/floats.h"
#include "cpu/types.h"

namespace qaig {

// Computes the rows that `quantize` skipped, in float32 with the dequantized weight. Infinities and NaN propagate.
void linear_in_float32(const Linear& l, const Activations& a, const Parallel& parallel);

// The weights of a tile in float32, [in_features][16].
void dequantize_tile(const Weight& w, const Tile& tile, float* out);

// Rows [first, last) of a tile in float32, [last - first][in_features]. `scratch` has room for a tile.
void dequantize_rows(const Weight& w, const Tile& tile, int64_t first, int64_t last, float* out, float* scratch);

// Columns [start, stop) of the first `rows` rows of a tile in bfloat16, rounded to nearest even: [rows][stop - start].
void dequantize_columns(const Weight& w, const Tile& tile, int64_t rows, int64_t start, int64_t stop, uint16_t* out);

// y = x W' + bias for every layer, with the kernels of the instruction set in use. All layers have the same x, which is
// quantized once.
void linear(const std::vector<Linear>& layers, const Parallel& parallel);

// The same for layers with an x each, of any number of rows. Results equal those of `linear`.
void grouped_linear(const std::vector<Linear>& layers, const Parallel& parallel);

// Adds the bias to a tile's 16 values for row m of x, and stores them.
inline void store_row(const Linear& l, int64_t m, int64_t tile, const float* values) {
    const int64_t n = tile * kTileRows, count = std::min<int64_t>(kTileRows, l.weight.shape.out_features - n);
    float y[kTileRows];
    for (int64_t r = 0; r < count; r++) {
        y[r] = values[r] + (l.bias ? l.bias[n + r] : 0.f);
    }
    store_floats(l.y, l.type, m * l.weight.shape.out_features + n, count, y);
}

// In each instruction set, `quantize` fills Activations of any layout that the set reads. `gemv` takes one batch of 1,
// 2 or 4 rows, `gemm` any number of batches. Each computes batches or tiles [begin, end), in the thread that calls it.
constexpr int64_t kGemvRows = 4;

namespace portable {  // pairs
void quantize(const Linear& l, Activations& a, int64_t begin, int64_t end);
void matmul(const Linear& l, const Activations& a, int64_t begin, int64_t end);
}  // namespace portable

namespace avx2 {
void quantize(const Linear& l, Activations& a, int64_t begin, int64_t end);
void quantize_by_rows(const Linear& l, Activations& a, int64_t begin, int64_t end);  // for an emulated amx::gemm
void gemv(const Linear& l, const Activations& a, int64_t begin, int64_t end);
void gemm(const Linear& l, const Activations& a, int64_t begin, int64_t end);
void dequantize_tile(const Weight& w, const Tile& tile, float* out);  // [16][in_features]; all sets of x86-64 use it
}  // namespace avx2

namespace avxvnni {  // quads, which avx2::quantize makes
void gemv(const Linear& l, const Activations& a, int64_t begin, int64_t end);
void gemm(const Linear& l, const Activations& a, int64_t begin, int64_t end);
}  // namespace avxvnni

namespace avx512 {  // quads
void quantize(const Linear& l, Activations& a, int64_t begin, int64_t end);
void quantize_by_rows(const Linear& l, Activations& a, int64_t begin, int64_t end);  // for amx::gemm
void gemv(const Linear& l, const Activations& a, int64_t begin, int64_t end);
void gemm(const Linear& l, const Activations& a, int64_t begin, int64_t end);
void dequantize_columns(const Weight& w, const Tile& tile, int64_t rows, int64_t start, int64_t stop, uint16_t* out);
}  // namespace avx512

namespace amx {  // quads row by row, or bfloat16; avx512 has the rest
void quantize(const Linear& l, Activations& a, int64_t begin, int64_t end);
void gemm(const Linear& l, const Activations& a, int64_t begin, int64_t end);
}  // namespace amx

namespace neon {  // quads
void quantize(const Linear& l, Activations& a, int64_t begin, int64_t end);
void quantize_for_i8mm(const Linear& l, Activations& a, int64_t begin, int64_t end);  // for gemv and gemm_i8mm
void gemv(const Linear& l, const Activations& a, int64_t begin, int64_t end);
void gemm_dotprod(const Linear& l, const Activations& a, int64_t begin, int64_t end);
void gemm_i8mm(const Linear& l, const Activations& a, int64_t begin, int64_t end);
void dequantize_tile(const Weight& w, const Tile& tile, float* out);  // [16][in_features]
}  // namespace neon

}  // namespace qaig
