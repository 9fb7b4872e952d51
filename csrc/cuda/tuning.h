// Chooses kernels by the number of tokens, with limits for each GPU.
//
// Those of sm_90 were measured on an H200 (benchmarks/results), for a weight of a 7 B model's MLP. Smaller weights have
// lower limits. The other rows are estimates, from cache sizes, memory traffic, and the speed of mma relative to
// cuBLAS.
#pragma once

namespace qaig {
namespace cuda {

struct Tuning {
    int capability;         // 10 * major + minor. The last row that does not exceed the device's applies
    int max_gemv_rows;      // of x by gemv, QAIG_MAX_GEMV_ROWS at a time
    int max_gemm_f16_rows;  // by gemm_f16; 0: no such kernel. More rows: the weight is dequantized, cuBLAS multiplies
    int max_gemm_i8_rows;   // by gemm_i8, if x is rounded to 8 bits; more rows: as above
    long long chunk_bytes;  // of the weight that are dequantized at a time: they stay in the L2 cache. Where it was
                            // measured to be faster, a whole weight: all multiprocessors then have work
};

// Tensor cores multiply integers at least twice as fast as 16-bit floats, four times on consumers' GPUs. With mma.sync
// that stays ahead of cuBLAS, except where cuBLAS has a faster instruction. On 10.0, tensor cores may be slow at
// integers: we know little about it.
constexpr Tuning kTunings[] = {
    {0, 32, 0, 0, 2 << 20},             // sm_75: T4, 4 MB of L2
    {80, 16, 256, 1 << 16, 16 << 20},   // A100, 40 MB
    {86, 16, 256, 1 << 16, 3 << 20},    // RTX 30, 6 MB
    {89, 16, 256, 1 << 16, 16 << 20},   // RTX 40 and L4, 32 to 72 MB
    {90, 16, 128, 192, 256 << 20},      // H100 and H200
    {100, 16, 128, 128, 32 << 20},      // B200, 126 MB
    {120, 16, 256, 1 << 16, 32 << 20},  // RTX 50, up to 96 MB
};

inline const Tuning& tuning_for(int capability) {
    const Tuning* found = &kTunings[0];
    for (const Tuning& t : kTunings) {
        found = t.capability <= capability ? &t : found;
    }
    return *found;
}

}  // namespace cuda
}  // namespace qaig
