// Rotates x as `formats/hadamard.py` describes it. Every instruction set and plain torch agree to the bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/types.h"

namespace qaig {

// Bit k % 64 of word k / 64 is set where channel k changes sign. Empty without a rotation.
inline std::vector<uint64_t> sign_words(const Rotation& rotation, int64_t in_features) {
    std::vector<uint64_t> words(rotation.block ? (in_features + 63) / 64 : 0);
    uint64_t state = rotation.seed;
    for (uint64_t& word : words) {
        state += 0x9E3779B97F4A7C15u;
        uint64_t z = state;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        word = z ^ z >> 31;
    }
    return words;
}

// Signs of `count` channels from k on, one bit each. All lie within one word.
inline uint32_t signs_at(const uint64_t* words, int64_t k, int count) {
    return static_cast<uint32_t>(words[k / 64] >> (k % 64)) & ((1u << count) - 1);
}

inline float rotation_scale(int64_t block) { return static_cast<float>(1 / std::sqrt(static_cast<double>(block))); }

// Rotates a row in place.
inline void rotate_floats(float* x, int64_t in_features, int64_t block, const uint64_t* signs) {
    const float scale = rotation_scale(block);
    for (int64_t k = 0; k < in_features; k++) {
        x[k] = signs_at(signs, k, 1) ? -x[k] : x[k];
    }
    for (float* b = x; b < x + in_features; b += block) {
        for (int64_t distance = 1; distance < block; distance *= 2) {
            for (int64_t i = 0; i < block; i += 2 * distance) {
                for (int64_t j = i; j < i + distance; j++) {
                    const float sum = b[j] + b[j + distance];
                    b[j + distance] = b[j] - b[j + distance];
                    b[j] = sum;
                }
            }
        }
        for (int64_t j = 0; j < block; j++) {
            b[j] *= scale;
        }
    }
}

}  // namespace qaig
