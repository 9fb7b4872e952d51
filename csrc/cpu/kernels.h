// The kernels of every instruction set, and what they share.
#pragma once

#include <algorithm>

#include "activations.h"
#include "kernel.h"

namespace qaig {

// Tiles a thread takes at a time: about 128 KiB of weights, so that threads finish together.
inline int64_t tiles_per_chunk(const Shape& s) { return std::max<int64_t>(1, (1 << 15) / s.words_per_tile()); }

// float16, bfloat16 or float32 from element `at` on, to float32 and back (to nearest even).
void load_floats(const void* p, Scalar type, int64_t at, int64_t count, float* out);
void store_floats(void* p, Scalar type, int64_t at, int64_t count, const float* values);

// x as 16-bit pairs, by any processor.
void quantize_pairs(const Linear& l, Activations& a);

// Computes the rows that `quantize` skipped, in float32 with the dequantized weight: infinities and NaNs go through.
void exact_rows(const Linear& l, const Activations& a);

// The weights of a tile in float32, [in_features][16].
void tile_weights(const Weight& w, const Tile& tile, float* out);

// y = x W' + bias for all rows, with the kernels of the level in force.
void linear(const Linear& l);

// Each instruction set: `decode` takes one batch of 1, 2 or 4 rows, `gemm` any number of batches.
namespace portable {
void multiply(const Linear& l, const Activations& a);
}

namespace avx2 {
void decode(const Linear& l, const Activations& a);
void gemm(const Linear& l, const Activations& a);
}  // namespace avx2

namespace avx512 {
void quantize(const Linear& l, Activations& a);
void decode(const Linear& l, const Activations& a);
void gemm(const Linear& l, const Activations& a);
}  // namespace avx512

}  // namespace qaig
