// Which kernels compute a layer.
#include <vector>

#include "activations.h"
#include "kernels.h"
#include "level.h"
#include "parallel.h"

namespace qaig {
namespace {

constexpr int64_t kMostRows = 1024;  // rows of x whose integers are in memory at once

// Rows per batch: as few batches as registers allow, evenly filled.
int64_t rows_per_batch(int64_t rows, int64_t most) {
    if (rows <= 2) return rows;
    if (rows <= 4) return 4;
    const int64_t batches = (rows + most - 1) / most;
    return (rows + batches - 1) / batches;
}

void some_rows(const Linear& l, Level level) {
    if (level == Level::avx512) {
        Activations a(l, rows_per_batch(l.rows, 8), kQuadWords);
        avx512::quantize(l, a);
        l.rows <= 4 ? avx512::decode(l, a) : avx512::gemm(l, a);
        exact_rows(l, a);
    } else {
        Activations a(l, rows_per_batch(l.rows, 6), kPairWords);
        quantize_pairs(l, a);
        if (level == Level::avx2) {
            l.rows <= 4 ? avx2::decode(l, a) : avx2::gemm(l, a);
        } else {
            portable::multiply(l, a);
        }
        exact_rows(l, a);
    }
}

}  // namespace

void linear(const Linear& l) {
    const int64_t width = size_of(l.type);
    for (int64_t row = 0; row < l.rows; row += kMostRows) {
        Linear part = l;
        part.rows = std::min(kMostRows, l.rows - row);
        part.x = static_cast<const char*>(l.x) + row * l.weight.shape.in_features * width;
        part.y = static_cast<char*>(l.y) + row * l.weight.shape.out_features * width;
        some_rows(part, level());
    }
}

void exact_rows(const Linear& l, const Activations& a) {
    std::vector<int64_t> rows;
    for (int64_t m = 0; m < l.rows; m++) {
        if (a.skipped[m]) rows.push_back(m);
    }
    if (rows.empty()) return;
    const Shape& s = l.weight.shape;
    share(l.parallel, s.tiles(), 1, [&] {
        return [&, reader = std::make_shared<TileReader>(l.weight),
                w = std::make_shared<Buffer<float>>(s.in_features * kTileRows),
                x = std::make_shared<Buffer<float>>(s.in_features)](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; t++) {
                const int64_t n = t * kTileRows, count = std::min<int64_t>(kTileRows, s.out_features - n);
                tile_weights(l.weight, (*reader)(t), w->data());
                for (const int64_t m : rows) {
                    load_floats(l.x, l.type, m * s.in_features, s.in_features, x->data());
                    float y[kTileRows] = {};
                    for (int64_t k = 0; k < s.in_features; k++) {
                        for (int r = 0; r < kTileRows; r++) y[r] += (*x)[k] * (*w)[k * kTileRows + r];
                    }
                    if (l.bias) {
                        for (int64_t r = 0; r < count; r++) y[r] += l.bias[n + r];
                    }
                    store_floats(l.y, l.type, m * s.out_features + n, count, y);
                }
            }
        };
    });
}

void tile_weights(const Weight& w, const Tile& tile, float* out) {
    const Shape& s = w.shape;
    const int bits = kernel_bits(s.bits);
    uint8_t codes[kUnitSlots * kTileRows];
    float scale[kTileRows];
    for (int64_t g = 0; g < s.groups(); g++) {
        load_floats(tile.scale, w.scale_type, g * kTileRows, kTileRows, scale);
        for (int64_t k = 0; k < s.group_size; k++) {
            const int64_t unit = g * s.units_per_group() + k / kUnitSlots, slot = k % kUnitSlots;
            if (slot == 0) unit_codes(tile.words + unit * bits * kTileRows, bits, codes);
            for (int r = 0; r < kTileRows; r++) {
                const int zero = tile.zero ? tile.zero[g * kTileRows + r] : 1 << (s.bits - 1);
                *out++ = static_cast<float>(codes[slot * kTileRows + r] - zero) * scale[r];
            }
        }
    }
}

}  // namespace qaig
