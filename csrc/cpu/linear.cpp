// Linear layers of one input or of many, dequantization, and rows of x that are not finite.
#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/schedule.h"

namespace qaig {
namespace {

// The rows [begin, end) of a layer.
Linear rows_of(Linear l, int64_t begin, int64_t end) {
    const Shape& s = l.weight.shape;
    l.rows = end - begin;
    l.x = static_cast<const char*>(l.x) + begin * s.in_features * size_of(l.type);
    l.y = static_cast<char*>(l.y) + begin * s.out_features * size_of(l.type);
    return l;
}

// Whether two layers can share a quantized x, as the experts of one token can.
bool have_equal_x(const Linear& a, const Linear& b) {
    const int64_t bytes = a.rows * a.weight.shape.in_features * size_of(a.type);
    return a.rows == b.rows && activations_key(a) == activations_key(b) && std::memcmp(a.x, b.x, bytes) == 0;
}

void compute(const std::vector<Product>& products, const Parallel& parallel) {
    quantize(products, parallel);
    multiply(products, parallel);
}

}  // namespace

void linear(const std::vector<Linear>& layers, const Parallel& parallel) {
    const int64_t rows = layers.empty() ? 0 : layers[0].rows;
    for (int64_t row = 0; row < rows; row += kMaxRows) {
        std::map<ActivationsKey, Activations> known;
        std::vector<Product> products;
        for (const Linear& layer : layers) {
            const Linear l = rows_of(layer, row, std::min(row + kMaxRows, rows));
            const ActivationsKey key = activations_key(l);
            auto found = known.find(key);
            if (found == known.end()) {
                found = known.emplace(key, make_activations(l)).first;
            }
            products.push_back({l, &found->second});
        }
        compute(products, parallel);
    }
}

void grouped_linear(const std::vector<Linear>& layers, const Parallel& parallel) {
    std::deque<Activations> activations;  // its elements stay where they are
    std::vector<Product> products;
    int64_t pending_rows = 0;
    const auto flush = [&] {
        compute(products, parallel);
        products.clear();
        activations.clear();
        pending_rows = 0;
    };
    for (const Linear& layer : layers) {
        for (int64_t row = 0; row < layer.rows; row += kMaxRows) {
            const Linear l = rows_of(layer, row, std::min(row + kMaxRows, layer.rows));
            if (pending_rows + l.rows > kMaxRows) {
                flush();
            }
            if (products.empty() || !have_equal_x(products.back().layer, l)) {
                activations.push_back(make_activations(l));
            }
            products.push_back({l, &activations.back()});
            pending_rows += l.rows;
        }
    }
    flush();
}

void linear_in_float32(const Linear& l, const Activations& a, const Parallel& parallel) {
    std::vector<int64_t> rows;
    for (int64_t m = 0; m < l.rows; m++) {
        if (a.skipped[m]) {
            rows.push_back(m);
        }
    }
    if (rows.empty()) {
        return;
    }
    const Shape& s = l.weight.shape;
    parallel_chunks(parallel, s.tiles(), 1, [&] {
        return [&, reader = std::make_shared<TileReader>(l.weight),
                w = std::make_shared<Buffer<float>>(s.in_features * kTileRows),
                x = std::make_shared<Buffer<float>>(s.in_features)](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; t++) {
                const int64_t n = t * kTileRows, count = std::min<int64_t>(kTileRows, s.out_features - n);
                dequantize_tile(l.weight, (*reader)(t), w->data());
                for (const int64_t m : rows) {
                    load_floats(l.x, l.type, m * s.in_features, s.in_features, x->data());
                    if (l.rotation.block) {
                        rotate_floats(x->data(), s.in_features, l.rotation.block, a.signs.data());
                    }
                    float y[kTileRows] = {};
                    for (int64_t k = 0; k < s.in_features; k++) {
                        for (int r = 0; r < kTileRows; r++) {
                            y[r] += (*x)[k] * (*w)[k * kTileRows + r];
                        }
                    }
                    if (l.bias) {
                        for (int64_t r = 0; r < count; r++) {
                            y[r] += l.bias[n + r];
                        }
                    }
                    store_floats(l.y, l.type, m * s.out_features + n, count, y);
                }
            }
        };
    });
}

void dequantize_tile(const Weight& w, const Tile& tile, float* out) {
    const Shape& s = w.shape;
    const int bits = kernel_bits(s.bits);
    uint8_t codes[kUnitSlots * kTileRows];
    float scale[kTileRows], zero[kTileRows];
    for (int64_t g = 0; g < s.groups(); g++) {
        load_floats(tile.scale, w.scale_type, g * kTileRows, kTileRows, scale);
        for (int r = 0; r < kTileRows; r++) {
            zero[r] = static_cast<float>(tile.zero ? tile.zero[g * kTileRows + r] : 1 << (s.bits - 1));
        }
        for (int64_t k = 0; k < s.group_size; k++) {
            const int64_t unit = g * s.units_per_group() + k / kUnitSlots, slot = k % kUnitSlots;
            if (slot == 0) {
                unpack_tile_unit(tile.words + unit * bits * kTileRows, bits, codes);
            }
            for (int r = 0; r < kTileRows; r++) {
                out[r] = (static_cast<float>(codes[slot * kTileRows + r]) - zero[r]) * scale[r];
            }
            out += kTileRows;
        }
    }
}

void dequantize_rows(const Weight& w, const Tile& tile, int64_t first, int64_t last, float* out, float* scratch) {
    const int64_t columns = w.shape.in_features;
#if defined(__x86_64__) || defined(QAIG_NEON)
#if defined(__x86_64__)
    constexpr auto dequantize_by_rows = avx2::dequantize_tile;
#else
    constexpr auto dequantize_by_rows = neon::dequantize_tile;
#endif
    if (isa() != Isa::portable) {
        const bool is_whole = last - first == kTileRows;
        dequantize_by_rows(w, tile, is_whole ? out : scratch);
        if (!is_whole) {
            std::copy(scratch + first * columns, scratch + last * columns, out);
        }
        return;
    }
#endif
    dequantize_tile(w, tile, scratch);
    // Transposes squares of the tile, which stay in the L1 cache meanwhile.
    for (int64_t k0 = 0; k0 < columns; k0 += kTileRows) {
        for (int64_t r = first; r < last; r++) {
            for (int64_t k = k0; k < std::min(columns, k0 + kTileRows); k++) {
                out[(r - first) * columns + k] = scratch[k * kTileRows + r];
            }
        }
    }
}

void dequantize_columns(const Weight& w, const Tile& tile, int64_t rows, int64_t start, int64_t stop, uint16_t* out) {
#if defined(__x86_64__)
    if (isa() >= Isa::avx512 && can_run(Isa::avx512)) {
        return avx512::dequantize_columns(w, tile, rows, start, stop, out);
    }
#endif
    const Buffer<float> values(w.shape.in_features * kTileRows);
    dequantize_tile(w, tile, values.data());
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t k = start; k < stop; k++) {
            store_floats(out, Scalar::bf16, r * (stop - start) + k - start, 1, &values[k * kTileRows + r]);
        }
    }
}

}  // namespace qaig
