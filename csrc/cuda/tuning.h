// Choices that depend on the GPU. Those of sm_90 were measured on an H200 (benchmarks/results), where the ways cross for a
// weight of a 7 B model's MLP; smaller ones cross earlier. The others are estimates from the sizes of caches, from what
// the ways to multiply read and write, and from how far below cuBLAS plain mma kernels stay on each GPU.
#pragma once

namespace qaig {
namespace cuda {

struct Tuning {
    int capability;         // 10 * major + minor: the last row that is not above the device's counts
    int most_decode_rows;   // of x that the decode kernels multiply, QAIG_MOST_ROWS at a time
    int most_fused_rows;    // that the fused kernels do; 0: there are none. More go to cuBLAS, the weight unpacked
    int most_integer_rows;  // that the integer kernels do, if x is rounded to 8 bits; more go to cuBLAS, too
    long long chunk_bytes;  // of the weight that are unpacked at a time: that stay in the L2 cache or, where that was
                            // measured to be faster, a whole weight, as cuBLAS has all multiprocessors at work then
};

// Integers are multiplied at least twice as fast as 16-bit floats, on consumers' GPUs four times. What is left of that
// with mma.sync stays ahead of cuBLAS where that has no faster instruction of its own. Of 10.0 little is known: its
// tensor cores may be slow at integers.
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
