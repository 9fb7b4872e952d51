// Between the checkpoint layout of a packed weight and the kernels' CPU layout.
#pragma once

#include <cstdlib>
#include <memory>

#include "cpu/types.h"

namespace qaig {

// One tile of a weight in CPU layout.
struct Tile {
    const uint32_t* words;  // [G * U][b][16]
    const void* scale;      // [G][16]
    const uint8_t* zero;    // [G][16] or nullptr
};

struct FreeDeleter {
    void operator()(void* memory) const { std::free(memory); }
};

// Uninitialised memory, aligned to cache lines.
template <class T>
class Buffer {
public:
    explicit Buffer(int64_t size) {
        if (size == 0) {
            return;
        }
        const size_t bytes = (static_cast<size_t>(size) * sizeof(T) + 63) / 64 * 64;
        memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
        if (!memory_) {
            throw std::bad_alloc();
        }
    }
    T* data() const { return memory_.get(); }
    T& operator[](int64_t i) const { return memory_.get()[i]; }

private:
    std::unique_ptr<T, FreeDeleter> memory_;
};

// Gives the tiles of a weight to one thread; tiles of a weight in checkpoint layout are repacked as they are asked for.
class TileReader {
public:
    explicit TileReader(const Weight& weight);
    Tile operator()(int64_t tile) const;

private:
    const Weight& weight_;
    Buffer<uint32_t> words_;
    Buffer<char> scale_;
    Buffer<uint8_t> zero_;
};

// Rewrites tile `tile` of a weight in checkpoint layout; `zero` is not touched if the weight is symmetric. Weights of 5 to
// 7 bits come out as 8-bit codes.
void tile_from_checkpoint(const Weight& checkpoint, int64_t tile, uint32_t* words, void* scale, uint8_t* zero);

// The inverse: rows of `tile` as checkpoint words [rows][ceil(K b / 32)], scales [rows][G] and zero points [rows][G], one
// byte each.
void tile_to_checkpoint(const Weight& cpu, int64_t tile, uint32_t* words, void* scale, uint8_t* zero);

// Row `row` of a weight in either layout, in float32: [in_features].
void dequantize_row(const Weight& weight, int64_t row, float* out);

// Codes of one unit, [32 slots][16 rows].
void unit_codes(const uint32_t* words, int bits, uint8_t* codes);

// Bits of the kernel that computes with `bits`-bit codes: 5 to 7 are widened to 8.
constexpr int kernel_bits(int bits) { return has_cpu_layout(bits) ? bits : 8; }

}  // namespace qaig
