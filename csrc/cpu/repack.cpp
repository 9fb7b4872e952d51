// Packs and unpacks codes in both layouts, and converts tiles between them.
#include "cpu/repack.h"

#include <algorithm>
#include <cstring>

#include "cpu/floats.h"

namespace qaig {
namespace {

// Code i of a dense little-endian bit stream.
inline uint32_t read_code(const uint32_t* words, int bits, int64_t i) {
    const int64_t bit = i * bits;
    const int shift = static_cast<int>(bit % 32);
    uint32_t code = words[bit / 32] >> shift;
    if (shift + bits > 32) {
        code |= words[bit / 32 + 1] << (32 - shift);
    }
    return code & ((1u << bits) - 1);
}

inline void write_code(uint32_t* words, int bits, int64_t i, uint32_t code) {
    const int64_t bit = i * bits;
    const int shift = static_cast<int>(bit % 32);
    words[bit / 32] |= code << shift;
    if (shift + bits > 32) {
        words[bit / 32 + 1] |= code >> (32 - shift);
    }
}

// Packs 32 codes of one row into its lane of a unit.
template <int B>
void pack_unit(const uint8_t* codes, uint32_t* unit) {
    uint32_t words[B] = {};
    for (int q = 0; q < kUnitQuads; q++) {
        uint32_t quad = 0;
        for (int e = 0; e < 4; e++) {
            quad |= uint32_t(codes[4 * q + e]) << (8 * quad_byte(e));
        }
        if (B == 3 && q >= 6) {
            words[q - 6] |= (quad & 0x03030303u) << 6;
            words[2 % B] |= (quad & 0x04040404u) << (q == 6 ? 4 : 5);
        } else {
            words[quad_word(B, q)] |= quad << quad_bit(B, q);
        }
    }
    for (int w = 0; w < B; w++) {
        unit[w * kTileRows] = words[w];
    }
}

template <int B>
void unpack_unit(const uint32_t* unit, uint8_t* codes) {
    constexpr uint32_t mask = ((1u << B) - 1) * 0x01010101u;
    for (int q = 0; q < kUnitQuads; q++) {
        uint32_t quad;
        if (B == 3 && q >= 6) {
            quad = (unit[(q - 6) * kTileRows] >> 6 & 0x03030303u) | (unit[2 * kTileRows] >> (q - 2) & 0x04040404u);
        } else {
            quad = unit[quad_word(B, q) * kTileRows] >> quad_bit(B, q) & mask;
        }
        for (int e = 0; e < 4; e++) {
            codes[4 * q + e] = static_cast<uint8_t>(quad >> (8 * quad_byte(e)));
        }
    }
}

void pack_unit(int bits, const uint8_t* codes, uint32_t* unit) {
    switch (bits) {
        case 2: return pack_unit<2>(codes, unit);
        case 3: return pack_unit<3>(codes, unit);
        case 4: return pack_unit<4>(codes, unit);
        default: return pack_unit<8>(codes, unit);
    }
}

void unpack_unit(int bits, const uint32_t* unit, uint8_t* codes) {
    switch (bits) {
        case 2: return unpack_unit<2>(unit, codes);
        case 3: return unpack_unit<3>(unit, codes);
        case 4: return unpack_unit<4>(unit, codes);
        default: return unpack_unit<8>(unit, codes);
    }
}

int64_t num_words(int64_t codes, int bits) { return (codes * bits + 31) / 32; }

// Zero point of row `row` and group `g` in checkpoint layout. Zero points are packed along N: code `row` of column g.
uint8_t checkpoint_zero(const Weight& checkpoint, int64_t row, int64_t g) {
    const int64_t groups = checkpoint.shape.groups(), bit = row * checkpoint.shape.bits;
    const auto* column = static_cast<const uint32_t*>(checkpoint.zero) + g;
    uint64_t two = column[bit / 32 * groups];
    if (bit % 32 + checkpoint.shape.bits > 32) {
        two |= uint64_t(column[(bit / 32 + 1) * groups]) << 32;
    }
    return static_cast<uint8_t>(two >> (bit % 32) & ((1u << checkpoint.shape.bits) - 1));
}

}  // namespace

void tile_from_checkpoint(const Weight& checkpoint, int64_t tile, uint32_t* words, void* scale, uint8_t* zero) {
    const Shape& s = checkpoint.shape;
    const int bits = s.bits, wide = kernel_bits(bits);
    const int64_t row0 = tile * kTileRows, groups = s.groups();
    const int64_t rows = std::min<int64_t>(kTileRows, s.out_features - row0);
    const int64_t unit_words = int64_t(wide) * kTileRows, scale_size = size_of(checkpoint.scale_type);
    if (rows < kTileRows) {
        std::memset(words, 0, s.units() * unit_words * 4);
        std::memset(scale, 0, groups * kTileRows * scale_size);
        if (checkpoint.zero) {
            std::memset(zero, 0, groups * kTileRows);
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        const uint32_t* row = checkpoint.words + (row0 + r) * num_words(s.in_features, bits);
        const char* row_scale = static_cast<const char*>(checkpoint.scale) + (row0 + r) * groups * scale_size;
        uint32_t* unit = words + r;
        for (int64_t g = 0; g < groups; g++) {
            for (int64_t k = 0; k < s.group_size; k += kUnitSlots, unit += unit_words) {
                uint8_t codes[kUnitSlots] = {};
                const int64_t count = std::min<int64_t>(kUnitSlots, s.group_size - k), first = g * s.group_size + k;
                for (int64_t i = 0; i < count; i++) {
                    codes[i] = static_cast<uint8_t>(read_code(row, bits, first + i));
                }
                pack_unit(wide, codes, unit);
            }
            std::memcpy(static_cast<char*>(scale) + (g * kTileRows + r) * scale_size, row_scale + g * scale_size,
                        scale_size);
            if (checkpoint.zero) {
                zero[g * kTileRows + r] = checkpoint_zero(checkpoint, row0 + r, g);
            }
        }
    }
}

void tile_to_checkpoint(const Weight& cpu, int64_t tile, uint32_t* words, void* scale, uint8_t* zero) {
    const Shape& s = cpu.shape;
    const int64_t groups = s.groups(), scale_size = size_of(cpu.scale_type),
                  row_words = num_words(s.in_features, s.bits);
    const int64_t rows = std::min<int64_t>(kTileRows, s.out_features - tile * kTileRows);
    const uint32_t* tile_words = cpu.words + tile * s.words_per_tile();
    const char* tile_scale = static_cast<const char*>(cpu.scale) + tile * groups * kTileRows * scale_size;
    const uint8_t* tile_zero = static_cast<const uint8_t*>(cpu.zero) + (cpu.zero ? tile * groups * kTileRows : 0);
    std::memset(words, 0, rows * row_words * 4);
    for (int64_t r = 0; r < rows; r++) {
        const uint32_t* unit = tile_words + r;
        for (int64_t g = 0; g < groups; g++) {
            for (int64_t k = 0; k < s.group_size; k += kUnitSlots, unit += int64_t(s.bits) * kTileRows) {
                uint8_t codes[kUnitSlots];
                unpack_unit(s.bits, unit, codes);
                const int64_t count = std::min<int64_t>(kUnitSlots, s.group_size - k);
                for (int64_t i = 0; i < count; i++) {
                    write_code(words + r * row_words, s.bits, g * s.group_size + k + i, codes[i]);
                }
            }
            std::memcpy(static_cast<char*>(scale) + (r * groups + g) * scale_size,
                        tile_scale + (g * kTileRows + r) * scale_size, scale_size);
            if (cpu.zero) {
                zero[r * groups + g] = tile_zero[g * kTileRows + r];
            }
        }
    }
}

void dequantize_row(const Weight& w, int64_t row, float* out) {
    const Shape& s = w.shape;
    const int64_t groups = s.groups(), tile = row / kTileRows, lane = row % kTileRows;
    const uint32_t* stream = w.words + row * num_words(s.in_features, s.bits);
    const uint32_t* unit = w.words + tile * s.words_per_tile() + lane;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t place = w.in_checkpoint_layout ? row * groups + g : (tile * groups + g) * kTileRows + lane;
        float scale, zero = static_cast<float>(1 << (s.bits - 1));
        load_floats(w.scale, w.scale_type, place, 1, &scale);
        if (w.zero) {
            zero = w.in_checkpoint_layout ? checkpoint_zero(w, row, g) : static_cast<const uint8_t*>(w.zero)[place];
        }
        for (int64_t k = 0; k < s.group_size; k += kUnitSlots) {
            uint8_t codes[kUnitSlots];
            const int64_t count = std::min<int64_t>(kUnitSlots, s.group_size - k), first = g * s.group_size + k;
            if (w.in_checkpoint_layout) {
                for (int64_t i = 0; i < count; i++) {
                    codes[i] = static_cast<uint8_t>(read_code(stream, s.bits, first + i));
                }
            } else {
                unpack_unit(s.bits, unit, codes);
                unit += int64_t(s.bits) * kTileRows;
            }
            for (int64_t i = 0; i < count; i++) {
                out[first + i] = (static_cast<float>(codes[i]) - zero) * scale;
            }
        }
    }
}

void unpack_tile_unit(const uint32_t* words, int bits, uint8_t* codes) {
    uint8_t row[kUnitSlots];
    for (int r = 0; r < kTileRows; r++) {
        unpack_unit(bits, words + r, row);
        for (int i = 0; i < kUnitSlots; i++) {
            codes[i * kTileRows + r] = row[i];
        }
    }
}

TileReader::TileReader(const Weight& weight)
    : weight_(weight),
      words_(weight.in_checkpoint_layout ? weight.shape.units() * kernel_bits(weight.shape.bits) * kTileRows : 0),
      scale_(weight.in_checkpoint_layout ? weight.shape.groups() * kTileRows * size_of(weight.scale_type) : 0),
      zero_(weight.in_checkpoint_layout && weight.zero ? weight.shape.groups() * kTileRows : 0) {}

Tile TileReader::operator()(int64_t tile) const {
    const Shape& s = weight_.shape;
    const auto* zero = static_cast<const uint8_t*>(weight_.zero);
    if (weight_.in_checkpoint_layout) {
        tile_from_checkpoint(weight_, tile, words_.data(), scale_.data(), zero_.data());
        return {words_.data(), scale_.data(), zero ? zero_.data() : nullptr};
    }
    const int64_t group_rows = tile * s.groups() * kTileRows;
    return {weight_.words + tile * s.words_per_tile(),
            static_cast<const char*>(weight_.scale) + group_rows * size_of(weight_.scale_type),
            zero ? zero + group_rows : nullptr};
}

}  // namespace qaig
