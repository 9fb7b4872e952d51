// gemm with AMX-INT8, for many rows of x. The codes of 32 output channels and one segment are unpacked once. They stay in
// four tiles while every batch of rows is multiplied with them.
//
// The words of a quad are a row of a tile as they are: 16 channels of four bytes each. So codes need no other order than
// the one that `unpack` makes, and rows of x are their own quads one after the other.
//
//   tiles 0, 1   sums [rows of x][16 channels], of one plane of x, for each of two tiles of the weight
//   tiles 2, 3   x [rows][16 quads], the two halves of a segment
//   tiles 4 - 7  codes [16 quads][16 channels]: halves 0 and 1 of the first tile of the weight, then of the second
#include "cpu/amx/tiles.h"
#include "cpu/avx2/gemm.h"
#include "cpu/kernels.h"

#if defined(__x86_64__)

#if defined(QAIG_EMULATE_AMX)
#define QAIG_AMX_BEGIN QAIG_AVX2_BEGIN
#elif defined(__clang__)  // which would ignore all of it with a width
#define QAIG_AMX_BEGIN QAIG_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#else
#define QAIG_AMX_BEGIN QAIG_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,prefer-vector-width=512")
#endif

QAIG_AMX_BEGIN

namespace qaig::amx {
namespace {

constexpr int kPanelTiles = 2;
constexpr int kPanelRows = kPanelTiles * kTileRows;
constexpr int kStepUnits = 2;  // 64 channels of x: the bytes of a tile's row
constexpr int kStepWords = kStepUnits * kUnitQuads * kTileRows;
constexpr int64_t kBlockRows = 128;  // rows of x that share unpacked codes: their planes stay in the second-level cache

// Codes and grid of 32 output channels in a segment.
struct Panel {
    alignas(64) uint32_t codes[kPanelTiles][avx2::kSegmentWords];
    alignas(64) float scale[kPanelTiles][kTileRows];
    alignas(64) int32_t zero[kPanelTiles][kTileRows];
};

// Sums of a segment's products, of up to two planes of x.
struct Sums {
    alignas(64) int32_t at[2][kPanelTiles][kMaxBatchRows][kTileRows];
};

TileConfig tile_config(int64_t rows) {
    TileConfig config;
    for (int tile = 0; tile < kTiles; tile++) {
        const bool is_codes = tile >= 4;
        config.set(tile, is_codes ? kStepUnits * kUnitQuads : rows, kRowBytes);
    }
    return config;
}

// Unpacks tile `c` of the panel. Codes of a step that a segment fills by half are zeros there, whatever x is read.
void unpack(const Linear& l, const Tile& tile, const Segment& segment, int64_t group, int c, Panel& panel) {
    const int bits = kernel_bits(l.weight.shape.bits);
    avx2::unpack<avx2::Quads>(bits, tile.words + segment.unit * bits * kTileRows, segment.units, panel.codes[c]);
    if (segment.units % kStepUnits) {
        std::fill_n(panel.codes[c] + segment.units * kUnitQuads * kTileRows, kUnitQuads * kTileRows, 0u);
    }
    const avx2::Grid grid(l.weight, tile, group);
    for (int h = 0; h < avx2::kHalves; h++) {
        _mm256_store_ps(panel.scale[c] + 8 * h, grid.scale[h]);
        _mm256_store_si256(reinterpret_cast<__m256i*>(panel.zero[c] + 8 * h), grid.zero[h]);
    }
}

void load_codes(const Panel& panel, int64_t steps) {
    load<4>(panel.codes[0], kRowBytes);
    load<6>(panel.codes[1], kRowBytes);
    if (steps > 1) {
        load<5>(panel.codes[0] + kStepWords, kRowBytes);
        load<7>(panel.codes[1] + kStepWords, kRowBytes);
    }
}

// The products of a plane of x, whose rows are `stride` bytes apart, with the codes in the tiles.
void multiply_plane(const uint32_t* x, int64_t stride, int64_t steps,
                    int32_t (&sums)[kPanelTiles][kMaxBatchRows][kTileRows]) {
    clear<0>();
    clear<1>();
    load<2>(x, stride);
    multiply<0, 2, 4>();
    multiply<1, 2, 6>();
    if (steps > 1) {
        load<3>(x + kStepUnits * kUnitQuads, stride);
        multiply<0, 3, 5>();
        multiply<1, 3, 7>();
    }
    store<0>(sums[0], kRowBytes);
    store<1>(sums[1], kRowBytes);
}

// Adds the value of the sums of one part of x, in `planes` planes, to out [rows][32].
void add_values(const Sums& sums, int planes, const Panel& panel, int64_t rows, const float* x_scale,
                const int32_t* x_sum, float* out) {
    for (int64_t m = 0; m < rows; m++) {
        for (int c = 0; c < kPanelTiles; c++, out += kTileRows) {
            const int32_t* first = sums.at[0][c][m];
            const int32_t* second = sums.at[1][c][m];
            for (int r = 0; r < kTileRows; r++) {
                const int32_t product = planes == 1 ? first[r] : first[r] * 256 + second[r];
                const auto exact = static_cast<float>(product - panel.zero[c][r] * x_sum[m]);
                out[r] = __builtin_fmaf(panel.scale[c][r] * x_scale[m], exact, out[r]);
            }
        }
    }
}

// Output channels of the tiles [t, end), one or two, for the batches [b0, b1).
void gemm_panel(const Linear& l, const Activations& a, const TileReader (&readers)[kPanelTiles], int64_t t, int64_t end,
                int64_t b0, int64_t b1, Panel& panel, Sums& sums, float* out) {
    const Shape& s = l.weight.shape;
    const int64_t rows = a.batch_rows, tiles = end - t;
    Tile tile[kPanelTiles];
    for (int c = 0; c < tiles; c++) {
        tile[c] = readers[c](t + c);
    }
    std::fill_n(out, (b1 - b0) * rows * kPanelRows, 0.f);
    for (int64_t i = 0; i < s.segments(); i++) {
        const Segment segment = segment_at(s, i);
        const int64_t steps = (segment.units + kStepUnits - 1) / kStepUnits;
        for (int c = 0; c < tiles; c++) {
            unpack(l, tile[c], segment, i / s.segments_per_group(), c, panel);
        }
        load_codes(panel, steps);
        for (int64_t b = b0; b < b1; b++) {
            const int planes = a.planes[b];
            const int64_t plane_words = segment.units * kUnitQuads, stride = planes * plane_words * 4;
            const uint32_t* x = a.words.data() + b * a.batch_words + segment.unit * kUnitQuads * planes * rows;
            for (int part = 0; part < parts(planes); part++) {
                for (int p = 0; p < part_planes(planes, part); p++, x += plane_words) {
                    multiply_plane(x, stride, steps, sums.at[p]);
                }
                const int64_t at = b * a.batch_sums + (i * kMaxParts + part) * rows;
                add_values(sums, part_planes(planes, part), panel, rows, a.scales.data() + at, a.sums.data() + at,
                           out + (b - b0) * rows * kPanelRows);
            }
        }
    }
    for (int64_t m = b0 * rows; m < std::min(b1 * rows, l.rows); m++) {
        for (int c = 0; c < tiles; c++) {
            store_row(l, m, t + c, out + (m - b0 * rows) * kPanelRows + c * kTileRows);
        }
    }
}

}  // namespace

void gemm(const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    const int64_t block = std::max<int64_t>(1, kBlockRows / a.batch_rows);
    const TileReader readers[kPanelTiles] = {TileReader(l.weight), TileReader(l.weight)};
    const Buffer<float> out(block * a.batch_rows * kPanelRows);
    const Buffer<Panel> panel(1);
    const Buffer<Sums> sums(1);
    panel[0] = {};  // a single tile at the end is multiplied beside whatever is in the second one
    const Configured configured(tile_config(a.batch_rows));
    for (int64_t b = 0; b < a.batches; b += block) {
        for (int64_t t = begin; t < end; t += kPanelTiles) {
            gemm_panel(l, a, readers, t, std::min(t + kPanelTiles, end), b, std::min(b + block, a.batches), panel[0],
                       sums[0], out.data());
        }
    }
}

}  // namespace qaig::amx

QAIG_TARGET_END

#endif
