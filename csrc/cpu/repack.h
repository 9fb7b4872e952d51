// Converts packed weights between the checkpoint layout and the CPU layout.
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

// Reads the tiles of a weight in one thread. Tiles of a weight in checkpoint layout are repacked when they are read.
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

// Converts tile `tile` of a weight in checkpoint layout to CPU layout. Weights of 5 to 7 bits become 8-bit codes. A
// symmetric weight leaves `zero` as it is.
void tile_from_checkpoint(const Weight& checkpoint, int64_t tile, uint32_t* words, void* scale, uint8_t* zero);

// The inverse. Writes words [rows][ceil(K b / 32)], scales [rows][G] and zero points [rows][G], which are a byte each.
void tile_to_checkpoint(const Weight& cpu, int64_t tile, uint32_t* words, void* scale, uint8_t* zero);

// Row `row` of a weight in either layout, in float32: [in_features].
void dequantize_row(const Weight& weight, int64_t row, float* out);

// Unpacks one unit of a tile: [32 slots][16 rows].
void unpack_tile_unit(const uint32_t* words, int bits, uint8_t* codes);

// The width that kernels compute with: codes of 5 to 7 bits are widened to 8.
constexpr int kernel_bits(int bits) { return has_cpu_layout(bits) ? bits : 8; }

}  // namespace qaig
