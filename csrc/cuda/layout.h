// The CUDA layout of a packed weight: the order of its words, and where each code lies.
//
// Plain C++ without includes: g++, nvcc and NVRTC compile it. Only `transformers_qaig/formats/cuda_layout.py` converts
// weights to this layout and back.
//
// Rows (output channels) come in blocks of 64, input channels in tiles of 64 slots, which are two units of 32. A
// quantization group is padded to whole units, so no unit holds channels of two groups. With B row blocks, T tiles,
// G groups and b bits:
//
//   words  int32 [B][T][b][32][4]   lane l of a warp reads b times 16 bytes: [..., l, :]
//   scale        [B][G][64]         float16, bfloat16 or float32, as stored
//   zero   uint8 [B][G][64]         absent if symmetric: 2^(b - 1) everywhere
//
// A row block is four row tiles of 16, the rows of one mma.m16n8k16 with the weight as its A operand. Let g = l / 4 and
// t = l % 4. Lane l has rows 16 r + g and 16 r + g + 8 of every row tile r. Of each unit it has slots 8 t to 8 t + 7,
// which are 16 contiguous bytes of x. Its 4 b words are those of row tiles 0 to 3, in order. Word f is [f / 4, l, f %
// 4]. The b words of a row tile are 32 codes: 16 pairs of two neighbouring slots. Pairs 4 s to 4 s + 3 are the
// registers a0 to a3 of the tile's product s:
//
//   pair p     row 16 r + g + 8 (p % 2), slots 32 (p / 8) + 8 t + 4 (p / 4 % 2) + 2 (p / 2 % 2) and the next
//
// The first code of a pair begins at a bit in the low half of a word, the second one 16 bits higher:
//
//   2, 4, 8 bits   word p b / 16, bit p b % 16
//   3 bits         pairs 0 to 14: word p / 5, bit 3 (p % 5); of pair 15, bit i of the code is bit 15 of word i
//
// Scales and zero points of a row block are sorted by lane, too: row 16 r + 8 h + g is at 8 g + 2 r + h.
//
// An x that is rounded to bytes (8 activation bits, many rows) has another order of slots, byte_place(). Lane t then
// finds its slots of both units of a tile in 16 contiguous bytes. Each unit's eight slots have the order 0, 2, 1, 3, 4,
// 6, 5, 7, in which masks unpack codes of 4 bits.
//
// Padding (rows beyond N, slots beyond a group's channels, an odd last unit) holds code 0, scale 0, zero 0.
#pragma once

#if defined(__CUDACC__)
#define QAIG_HOST_DEVICE __host__ __device__ constexpr
#else
#define QAIG_HOST_DEVICE constexpr
#endif

namespace qaig {
namespace cuda {

constexpr int kBlockRows = 64;
constexpr int kTileSlots = 64;
constexpr int kUnitSlots = 32;
constexpr int kRowTiles = 4;
constexpr int kTilePairs = 16;  // of one lane in one row tile

QAIG_HOST_DEVICE bool has_cuda_layout(int bits) { return bits == 2 || bits == 3 || bits == 4 || bits == 8; }

// Word of a row tile, and bit in it, at which the first code of pair `p` begins (3 bits: pairs 0 to 14).
QAIG_HOST_DEVICE int pair_word(int bits, int p) { return bits == 3 ? p / 5 : p * bits / 16; }
QAIG_HOST_DEVICE int pair_bit(int bits, int p) { return bits == 3 ? 3 * (p % 5) : p * bits % 16; }

// Offset of a slot's byte in its row of x.
QAIG_HOST_DEVICE int byte_place(int slot) {
    const int unit = slot / kUnitSlots % 2, t = slot / 8 % 4, e = slot % 8;
    return slot / kTileSlots * kTileSlots + 16 * t + 8 * unit + (e / 4 * 4 + e % 2 * 2 + e / 2 % 2);
}

// Sizes of a weight in CUDA layout. group_size is in channels: in_features if there is one group a row.
struct Shape {
    int out_features, in_features, group_size, bits;

    QAIG_HOST_DEVICE int row_blocks() const { return (out_features + kBlockRows - 1) / kBlockRows; }
    QAIG_HOST_DEVICE int groups() const { return in_features / group_size; }
    QAIG_HOST_DEVICE int units_per_group() const { return (group_size + kUnitSlots - 1) / kUnitSlots; }
    QAIG_HOST_DEVICE int units() const { return groups() * units_per_group(); }
    QAIG_HOST_DEVICE int tiles() const { return (units() + 1) / 2; }
    QAIG_HOST_DEVICE int slots() const { return tiles() * kTileSlots; }
    // A work item is a row block by a tile, which one warp multiplies at a time. Each takes 512 `bits` contiguous
    // bytes.
    QAIG_HOST_DEVICE long long work_items() const { return static_cast<long long>(row_blocks()) * tiles(); }
    // Whether slot i is channel i, so that kernels can read x as it is.
    QAIG_HOST_DEVICE bool in_channel_order() const { return groups() == 1 || group_size % kUnitSlots == 0; }
};

}  // namespace cuda
}  // namespace qaig
