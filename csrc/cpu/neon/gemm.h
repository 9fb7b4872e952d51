// gemm with NEON, for many rows of x: what the kernels with SDOT and SMMLA share. The codes of a tile and a segment are
// unpacked once, into the L1 cache, and multiplied by every batch of rows.
#pragma once

#include "cpu/neon/common.h"

#if defined(QAIG_NEON)

namespace qaig::neon {

// Adds the products of a batch of R rows with `units` units of codes to out [R][16].
using AddRows = void (*)(const int8_t* codes, int64_t units, const QParams& qparams, const uint32_t* x,
                         const float* x_scale, const int32_t* x_sum, float* out);

constexpr int kUnitQuadPairs = kUnitQuads / 2;  // of a unit
constexpr int kQuadPairBytes = 2 * kQuadBytes;  // codes of a pair of quads, for all rows

using Unpack = void (*)(int bits, const uint32_t* words, int64_t units, int8_t* codes);

void unpack_quads(int bits, const uint32_t* words, int64_t units, int8_t* codes);       // [quad][16 rows][4]
void unpack_quad_pairs(int bits, const uint32_t* words, int64_t units, int8_t* codes);  // [pair][8 pairs of rows][2][8]

// One gemm: `unpack` writes codes in some order, and `add_rows` returns a function that reads this order.
struct Gemm {
    Unpack unpack;
    AddRows (*add_rows)(int64_t rows, int planes);
};

void gemm_with(const Gemm& kernels, const Linear& l, const Activations& a, int64_t begin, int64_t end);

}  // namespace qaig::neon

#endif
