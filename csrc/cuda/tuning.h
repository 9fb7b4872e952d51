// Choices that depend on the GPU. None of them has been measured yet: they are estimates from the sizes of caches and
// from what the two ways read and write.
#pragma once

namespace qaig {
namespace cuda {

struct Tuning {
    int capability;         // 10 * major + minor: the last row that is not above the device's counts
    int most_decode_rows;   // of x: more are multiplied as a dense product, after unpacking the weight
    long long chunk_bytes;  // of the weight that are unpacked at a time, so that they stay in the L2 cache
};

constexpr Tuning kTunings[] = {
    {0, 32, 2 << 20},     // sm_75: T4, 4 MB of L2
    {80, 48, 16 << 20},   // A100, 40 MB
    {86, 32, 3 << 20},    // RTX 30, 6 MB
    {89, 48, 16 << 20},   // RTX 40 and L4, 32 to 72 MB
    {90, 48, 24 << 20},   // H100 and H200, 50 MB
    {100, 48, 32 << 20},  // B200, 126 MB
    {120, 48, 32 << 20},  // RTX 50, up to 96 MB
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
