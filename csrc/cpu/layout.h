// The CPU layout of a packed weight: the order of its words, and where each code lies.
//
// Rows (output channels) come in tiles of 16; input channels in units of 32 slots. A quantization group is padded to
// whole units, so no unit holds channels of two groups. With T tiles, G groups of U units each and b bits:
//
//   words  uint32 [T][G * U][b][16]    row r of a tile is lane r of a 512-bit register
//   scale         [T][G][16]           float16, bfloat16 or float32, as stored
//   zero   uint8  [T][G][16]           absent if symmetric
//
// A unit's 32 slots are 8 quads of 4. A quad has one code in each byte of a word: bytes 0 to 3 hold slots 0, 2, 1 and
// 3. So one byte mask yields a quad for 8-bit products. One 16-bit mask yields two neighbouring slots for 16-bit
// products. Where a quad's codes begin within their bytes:
//
//   2 bits  quad q: word q / 4, bit 2 (q % 4)
//   3 bits  quad q < 6: word q / 2, bit 3 (q % 2); quads 6 and 7 share the two top bits of the bytes of three words:
//           their low two bits are bits 6-7 of words 0 and 1, their third ones are bits 6 and 7 of word 2
//   4 bits  quad q: word q / 2, bit 4 (q % 2)
//   8 bits  quad q: word q
//
// A segment is up to 4 units of one group. Integers are summed over a segment.
//
// Padding (rows beyond N, slots beyond a group's channels) holds code 0. Results of padding are never stored.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qaig {

constexpr int kTileRows = 16;
constexpr int kUnitSlots = 32;
constexpr int kUnitQuads = 8;
constexpr int kSegmentUnits = 4;  // 128 channels: their sum of products of 16-bit integers and codes fits in 32 bits

constexpr bool has_cpu_layout(int bits) { return bits == 2 || bits == 3 || bits == 4 || bits == 8; }

// Byte of a word that holds slot `e` (0..3) of a quad.
constexpr int quad_byte(int e) { return e == 1 ? 2 : e == 2 ? 1 : e; }

// Word of a unit in which quad `q` begins, and its first bit within each byte (3 bits: quads 0..5 only).
constexpr int quad_word(int bits, int q) { return bits == 2 ? q / 4 : bits == 8 ? q : q / 2; }
constexpr int quad_bit(int bits, int q) { return bits == 2 ? 2 * (q % 4) : bits == 8 ? 0 : bits * (q % 2); }

// Sizes of a weight in CPU layout.
struct Shape {
    int64_t out_features, in_features, group_size;  // group_size in channels: in_features if there is one group a row
    int bits;

    int64_t groups() const { return in_features / group_size; }
    int64_t units_per_group() const { return (group_size + kUnitSlots - 1) / kUnitSlots; }
    int64_t units() const { return groups() * units_per_group(); }
    int64_t segments_per_group() const { return (units_per_group() + kSegmentUnits - 1) / kSegmentUnits; }
    int64_t segments() const { return groups() * segments_per_group(); }
    int64_t tiles() const { return (out_features + kTileRows - 1) / kTileRows; }
    int64_t words_per_tile() const { return units() * bits * kTileRows; }
};

}  // namespace qaig
