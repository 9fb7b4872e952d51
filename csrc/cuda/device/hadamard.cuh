// Rotates x, to the bit as `formats/hadamard.py` does. A warp has 256 channels, every lane eight of them.
#pragma once

#include "cuda/device/intrinsics.cuh"
#include "cuda/arguments.h"

namespace qaig {
namespace cuda {

constexpr int kRotated = 256;  // channels that a warp rotates at a time: whole blocks of any size

// Bit k % 64 of word k / 64 is set where channel k changes sign: SplitMix64's output of that index.
QAIG_DEVICE unsigned long long sign_word(unsigned long long seed, int index) {
    unsigned long long z = seed + (static_cast<unsigned long long>(index) + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

// 1 / sqrt(block), rounded to float32.
QAIG_DEVICE float rotation_scale(int block) {
    return block == 16    ? 0.25f
           : block == 32  ? 0.17677669529663687f
           : block == 64  ? 0.125f
           : block == 128 ? 0.08838834764831843f
                          : 0.0625f;
}

// Loads and rotates channels k to k + 7 of a row of x. Values beyond its end are zeros. All lanes of the warp take
// part: their k is 8 lane plus one multiple of kRotated.
template <class T>
QAIG_DEVICE void load_rotated(T type, const QaigQuantizeActivations& a, const unsigned short* x, int k, float (&v)[8]) {
    uint4 words = {0, 0, 0, 0};
    if (k < a.in_features) {
        words = load_global(reinterpret_cast<const uint4*>(x + k));
    }
    const unsigned pairs[4] = {words.x, words.y, words.z, words.w};
    const unsigned signs = static_cast<unsigned>(sign_word(a.rotation_seed, k / 64) >> k % 64);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float f = i % 2 ? high_float(type, pairs[i / 2]) : low_float(type, pairs[i / 2]);
        v[i] = float_of(bits_of(f) ^ (signs >> i & 1u) << 31);
    }
#pragma unroll
    for (int distance = 1; distance < 8; distance *= 2) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if ((i & distance) == 0) {
                const float sum = v[i] + v[i + distance];
                v[i + distance] = v[i] - v[i + distance];
                v[i] = sum;
            }
        }
    }
    const int lane = threadIdx.x % 32;
    for (int mask = 1; 8 * mask < a.rotation_block; mask *= 2) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float other = float_of(shuffle_xor(bits_of(v[i]), mask));
            v[i] = lane & mask ? other - v[i] : v[i] + other;
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        v[i] = multiply(v[i], rotation_scale(a.rotation_block));
    }
}

}  // namespace cuda
}  // namespace qaig
