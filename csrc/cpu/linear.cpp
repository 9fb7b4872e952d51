// The linear layer: which kernels compute it, and how many rows at a time.
#include <map>
#include <tuple>
#include <vector>

#include "cpu/activations.h"
#include "cpu/hadamard.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace qaig {
namespace {

constexpr int64_t kMaxRows = 1024;                 // rows of x whose integers are in memory at once
constexpr int64_t kMinParallelProducts = 1 << 18;  // with fewer, starting threads costs more than they save

struct Kernels {
    void (*quantize)(const Linear&, Activations&);
    void (*gemv)(const Linear&, const Activations&);
    void (*gemm)(const Linear&, const Activations&);
};

const Kernels& kernels_of(Isa isa) {
    static constexpr Kernels kKernels[] = {
        {portable::quantize, portable::matmul, portable::matmul},
#if defined(__x86_64__)  // elsewhere the folders avx2 and avx512 compile to nothing
        {avx2::quantize, avx2::gemv, avx2::gemm},
        {avx512::quantize, avx512::gemv, avx512::gemm},
#endif
    };
    return kKernels[static_cast<int>(isa)];
}

// Rows per batch: as few batches as registers allow, evenly filled.
int64_t rows_per_batch(int64_t rows, int64_t most) {
    if (rows <= 2) {
        return rows;
    }
    if (rows <= kGemvRows) {
        return kGemvRows;
    }
    const int64_t batches = (rows + most - 1) / most;
    return (rows + batches - 1) / batches;
}

// AVX2 has 8-bit products for codes of 2 to 4 bits. 16-bit activations need two of them for one 16-bit product, which
// pays where codes are unpacked once.
bool takes_quads(const Linear& l, Isa isa) {
    if (isa != Isa::avx2) {
        return isa == Isa::avx512;
    }
    return kernel_bits(l.weight.shape.bits) <= 4 && (l.rows <= kGemvRows || l.activation_bits == 8);
}

Activations quantized(const Linear& l, Isa isa) {
    const bool quads = takes_quads(l, isa);
    // Rows whose sums fit in the registers.
    const int64_t most = isa == Isa::avx512 ? kMaxBatchRows : quads ? 3 : 6;
    Activations a(l, rows_per_batch(l.rows, most), quads);
    kernels_of(isa).quantize(l, a);
    return a;
}

void matmul(const Linear& l, const Activations& a, Isa isa) {
    const Kernels& kernels = kernels_of(isa);
    (l.rows <= kGemvRows ? kernels.gemv : kernels.gemm)(l, a);
    linear_in_float32(l, a);
}

}  // namespace

void linear(const std::vector<Linear>& layers) {
    const Isa isa = qaig::isa();
    const int64_t rows = layers.empty() ? 0 : layers[0].rows;
    for (int64_t row = 0; row < rows; row += kMaxRows) {
        // By what shapes the integers: group size (where segments end), rotation, and form.
        std::map<std::tuple<int64_t, int64_t, uint64_t, bool>, Activations> known;
        for (Linear l : layers) {
            const Shape& s = l.weight.shape;
            l.rows = std::min(kMaxRows, rows - row);
            l.x = static_cast<const char*>(l.x) + row * s.in_features * size_of(l.type);
            l.y = static_cast<char*>(l.y) + row * s.out_features * size_of(l.type);
            if (l.rows * s.out_features * s.in_features < kMinParallelProducts) {
                l.parallel.threads = 1;
            }
            const std::tuple key(s.group_size, l.rotation.block, l.rotation.seed, takes_quads(l, isa));
            auto found = known.find(key);
            if (found == known.end()) {
                found = known.emplace(key, quantized(l, isa)).first;
            }
            matmul(l, found->second, isa);
        }
    }
}

void linear_in_float32(const Linear& l, const Activations& a) {
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
    const std::vector<uint64_t> signs = sign_words(l.rotation, s.in_features);
    parallel_chunks(l.parallel, s.tiles(), 1, [&] {
        return [&, reader = std::make_shared<TileReader>(l.weight),
                w = std::make_shared<Buffer<float>>(s.in_features * kTileRows),
                x = std::make_shared<Buffer<float>>(s.in_features)](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; t++) {
                const int64_t n = t * kTileRows, count = std::min<int64_t>(kTileRows, s.out_features - n);
                dequantize_tile(l.weight, (*reader)(t), w->data());
                for (const int64_t m : rows) {
                    load_floats(l.x, l.type, m * s.in_features, s.in_features, x->data());
                    if (l.rotation.block) {
                        rotate_floats(x->data(), s.in_features, l.rotation.block, signs.data());
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
    float scale[kTileRows];
    for (int64_t g = 0; g < s.groups(); g++) {
        load_floats(tile.scale, w.scale_type, g * kTileRows, kTileRows, scale);
        for (int64_t k = 0; k < s.group_size; k++) {
            const int64_t unit = g * s.units_per_group() + k / kUnitSlots, slot = k % kUnitSlots;
            if (slot == 0) {
                unit_codes(tile.words + unit * bits * kTileRows, bits, codes);
            }
            for (int r = 0; r < kTileRows; r++) {
                const int zero = tile.zero ? tile.zero[g * kTileRows + r] : 1 << (s.bits - 1);
                *out++ = static_cast<float>(codes[slot * kTileRows + r] - zero) * scale[r];
            }
        }
    }
}

}  // namespace qaig
