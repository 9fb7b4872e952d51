// Which kernels compute a product, how many rows at a time, and which part of it a thread takes next.
#include "cpu/schedule.h"

#include <unordered_set>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace qaig {
namespace {

constexpr int64_t kMinParallelProducts = 1 << 18;  // with fewer, starting threads costs more than they save
constexpr int64_t kMinParallelInputs = 1 << 15;    // values to quantize: likewise
constexpr int64_t kMostChunkWords = 1 << 19;       // of weights: 2 MiB
constexpr int64_t kMinTileRows = kGemvRows + 1;    // of x for AMX
constexpr int64_t kMinBf16Rows = 48;               // of x for AMX in bfloat16: so many pay for dequantizing the weight

struct Kernels {
    void (*quantize)(const Linear&, Activations&, int64_t begin, int64_t end);
    void (*gemv)(const Linear&, const Activations&, int64_t begin, int64_t end);
    void (*gemm)(const Linear&, const Activations&, int64_t begin, int64_t end);
};

// The instruction set that computes a layer.
Isa isa_of(const Linear& l) { return isa() == Isa::amx && l.rows < kMinTileRows ? best_before_amx() : isa(); }

Kernels kernels_for(const Linear& l) {
    switch (isa_of(l)) {
#if defined(__x86_64__)  // elsewhere the folders avx2, avxvnni and avx512 compile to nothing
        case Isa::avx2: return {avx2::quantize, avx2::gemv, avx2::gemm};
        case Isa::avxvnni: return {avx2::quantize, avxvnni::gemv, avxvnni::gemm};
        case Isa::avx512: return {avx512::quantize, avx512::gemv, avx512::gemm};
        case Isa::amx: return {amx::quantize, avx512::gemv, amx::gemm};
#elif defined(QAIG_NEON)  // elsewhere the folder neon does
        case Isa::neon_dotprod: return {neon::quantize, neon::gemv, neon::gemm_dotprod};
        case Isa::neon_i8mm: return {neon::quantize_for_i8mm, neon::gemv, neon::gemm_i8mm};
#endif
        default: return {portable::quantize, portable::matmul, portable::matmul};
    }
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
// pays where codes are unpacked once. AMX multiplies bfloat16 that is neither rounded nor rotated.
Form form_of(const Linear& l) {
    const Isa isa = isa_of(l);
    if (isa == Isa::portable) {
        return Form::pairs;
    }
    if (isa == Isa::amx) {
        const bool is_bf16 = l.type == Scalar::bf16 && l.activation_bits != 8 && !l.rotation.block;
        return is_bf16 && l.rows >= kMinBf16Rows ? Form::bf16 : Form::quads;
    }
    if (isa != Isa::avx2) {
        return Form::quads;
    }
    const bool pays = l.rows <= kGemvRows || l.activation_bits == 8;
    return kernel_bits(l.weight.shape.bits) <= 4 && pays ? Form::quads : Form::pairs;
}

// Batches or tiles [begin, end) of a product.
struct Part {
    const Product* product;
    int64_t begin, end;
};

template <class Work>
void for_each(const std::vector<Part>& parts, const Parallel& parallel, Work work) {
    parallel_chunks(parallel, static_cast<int64_t>(parts.size()), 1, [&] {
        return [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++) {
                work(parts[i]);
            }
        };
    });
}

Parallel one_thread_if(bool small, Parallel parallel) {
    parallel.threads = small ? 1 : std::max(1, parallel.threads);
    return parallel;
}

// What a tile costs: every unit is read, which takes as long as multiplying it by three rows, and multiplied by each.
int64_t tile_cost(const Linear& l) { return l.weight.shape.units() * (l.rows + 3); }

}  // namespace

ActivationsKey activations_key(const Linear& l) {
    return {l.weight.shape.group_size, l.rotation.block, l.rotation.seed, form_of(l)};
}

Activations activations_for(const Linear& l) {
    const Form form = form_of(l);
    // Rows whose sums fit in the registers.
    const Isa isa = isa_of(l);
    const int64_t most = isa == Isa::amx                           ? 16
                         : isa > Isa::avxvnni                      ? 8
                         : isa == Isa::avx2 && form == Form::quads ? 3
                                                                   : 6;
    int64_t rows = rows_per_batch(l.rows, most);
    if (isa == Isa::neon_i8mm && rows > kGemvRows) {
        rows += rows % 2;  // one instruction multiplies two rows
    }
    return Activations(l, rows, form);
}

void quantize(const std::vector<Product>& products, const Parallel& parallel) {
    std::unordered_set<const Activations*> known;
    std::vector<Part> parts;
    int64_t values = 0;
    for (const Product& product : products) {
        if (known.insert(product.activations).second) {
            values += product.layer.rows * product.layer.weight.shape.in_features;
            for (int64_t batch = 0; batch < product.activations->batches; batch++) {
                parts.push_back({&product, batch, batch + 1});
            }
        }
    }
    for_each(parts, one_thread_if(values < kMinParallelInputs, parallel), [&](const Part& part) {
        const Linear& l = part.product->layer;
        kernels_for(l).quantize(l, *part.product->activations, part.begin, part.end);
    });
}

void multiply(const std::vector<Product>& products, const Parallel& parallel) {
    int64_t count = 0, cost = 0;
    for (const Product& product : products) {
        const Shape& s = product.layer.weight.shape;
        count += product.layer.rows * s.out_features * s.in_features;
        cost += tile_cost(product.layer) * s.tiles();
    }
    const Parallel threads = one_thread_if(count < kMinParallelProducts, parallel);
    // A quarter of a thread's share at a time, so that threads finish together, but no more than 2 MiB of weights. Every
    // new piece of memory costs the hardware's prefetching a start.
    const int64_t share = cost / (4 * threads.threads);
    std::vector<Part> parts;
    for (const Product& product : products) {
        const Shape& s = product.layer.weight.shape;
        int64_t tiles =
            std::max<int64_t>(1, std::min(share / tile_cost(product.layer), kMostChunkWords / s.words_per_tile()));
        tiles += product.layer.rows > kGemvRows ? tiles % 2 : 0;  // gemm unpacks two tiles at a time
        for (int64_t t = 0; t < s.tiles(); t += tiles) {
            parts.push_back({&product, t, std::min(t + tiles, s.tiles())});
        }
    }
    for_each(parts, threads, [&](const Part& part) {
        const Linear& l = part.product->layer;
        const Kernels kernels = kernels_for(l);
        (l.rows <= kGemvRows ? kernels.gemv : kernels.gemm)(l, *part.product->activations, part.begin, part.end);
    });
    for (const Product& product : products) {
        linear_in_float32(product.layer, *product.activations, threads);
    }
}

}  // namespace qaig
