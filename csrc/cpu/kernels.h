// The kernels of every instruction set, and what they share.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/activations.h"
#include "cpu/floats.h"
#include "cpu/types.h"

namespace qaig {

// Tiles a thread takes at a time: a quarter of its share, so that threads finish together, but no more than 2 MiB.
// Every new piece of memory costs the hardware's prefetching a start.
inline int64_t tiles_per_chunk(const Shape& s, const Parallel& parallel) {
    const int64_t share = s.tiles() / (4 * std::max(1, parallel.threads)), most = (1 << 19) / s.words_per_tile();
    return std::max<int64_t>(1, std::min(share, most));
}

// Computes the rows that `quantize` skipped, in float32 with the dequantized weight: infinities and NaNs go through.
void linear_in_float32(const Linear& l, const Activations& a);

// The weights of a tile in float32, [in_features][16].
void dequantize_tile(const Weight& w, const Tile& tile, float* out);

// y = x W' + bias for every layer, with the kernels of the instruction set in use. All layers have the same x, which is
// turned into integers once.
void linear(const std::vector<Linear>& layers);

// In each instruction set, `quantize` fills the form that it is asked for, `gemv` takes one batch of 1, 2 or 4 rows, and
// `gemm` any number of batches.
constexpr int64_t kGemvRows = 4;

namespace portable {  // pairs
void quantize(const Linear& l, Activations& a);
void matmul(const Linear& l, const Activations& a);
}  // namespace portable

namespace avx2 {
void quantize(const Linear& l, Activations& a);
void gemv(const Linear& l, const Activations& a);
void gemm(const Linear& l, const Activations& a);
}  // namespace avx2

namespace avx512 {  // quads
void quantize(const Linear& l, Activations& a);
void gemv(const Linear& l, const Activations& a);
void gemm(const Linear& l, const Activations& a);
}  // namespace avx512

}  // namespace qaig
