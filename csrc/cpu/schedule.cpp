// Chooses kernels and batch sizes for products, and cuts their work into chunks for threads.
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
constexpr int64_t kMinBf16Rows = 48;  // of x for AMX in bfloat16: with fewer, dequantizing the weight costs more

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
#elif defined(QAIG_NEON)  // elsewhere the folder neon compiles to nothing
        case Isa::neon_dotprod: return {neon::quantize, neon::gemv, neon::gemm_dotprod};
        case Isa::neon_i8mm: return {neon::quantize_for_i8mm, neon::gemv, neon::gemm_i8mm};
#endif
        default: return {portable::quantize, portable::matmul, portable::matmul};
    }
}

// Rows per batch: as few batches as registers allow, of nearly equal size.
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

// AVX2 has 8-bit products for codes of 2 to 4 bits. For 16-bit activations two of them replace a 16-bit product. That
// is faster in gemv, which uses each code once. AMX multiplies bfloat16 that is neither rounded nor rotated.
ActivationLayout activation_layout(const Linear& l) {
    const Isa isa = isa_of(l);
    if (isa == Isa::portable) {
        return ActivationLayout::pairs;
    }
    if (isa == Isa::amx) {
        const bool is_bf16 = l.type == Scalar::bf16 && l.activation_bits != 8 && !l.rotation.block;
        return is_bf16 && l.rows >= kMinBf16Rows ? ActivationLayout::bf16 : ActivationLayout::quads;
    }
    if (isa != Isa::avx2) {
        return ActivationLayout::quads;
    }
    const bool pays = l.rows <= kGemvRows || l.activation_bits == 8;
    return kernel_bits(l.weight.shape.bits) <= 4 && pays ? ActivationLayout::quads : ActivationLayout::pairs;
}

// Batches or tiles [begin, end) of a product.
struct Chunk {
    const Product* product;
    int64_t begin, end;
};

template <class Work>
void run_chunks(const std::vector<Chunk>& chunks, const Parallel& parallel, Work work) {
    parallel_chunks(parallel, static_cast<int64_t>(chunks.size()), 1, [&] {
        return [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++) {
                work(chunks[i]);
            }
        };
    });
}

Parallel serial_if(bool small, Parallel parallel) {
    parallel.threads = small ? 1 : std::max(1, parallel.threads);
    return parallel;
}

// Estimated cost of a tile. Reading a unit takes about as long as multiplying it by three rows.
int64_t tile_cost(const Linear& l) { return l.weight.shape.units() * (l.rows + 3); }

}  // namespace

ActivationsKey activations_key(const Linear& l) {
    return {l.weight.shape.group_size, l.rotation.block, l.rotation.seed, activation_layout(l)};
}

Activations make_activations(const Linear& l) {
    const ActivationLayout layout = activation_layout(l);
    // The most rows whose sums fit in the registers.
    const Isa isa = isa_of(l);
    const int64_t most = isa == Isa::amx                                         ? 16
                         : isa > Isa::avxvnni                                    ? 8
                         : isa == Isa::avx2 && layout == ActivationLayout::quads ? 3
                                                                                 : 6;
    int64_t rows = rows_per_batch(l.rows, most);
    if (isa == Isa::neon_i8mm && rows > kGemvRows) {
        rows += rows % 2;  // one instruction multiplies two rows
    }
    return Activations(l, rows, layout);
}

void quantize(const std::vector<Product>& products, const Parallel& parallel) {
    std::unordered_set<const Activations*> known;
    std::vector<Chunk> chunks;
    int64_t values = 0;
    for (const Product& product : products) {
        if (known.insert(product.activations).second) {
            values += product.layer.rows * product.layer.weight.shape.in_features;
            for (int64_t batch = 0; batch < product.activations->batches; batch++) {
                chunks.push_back({&product, batch, batch + 1});
            }
        }
    }
    run_chunks(chunks, serial_if(values < kMinParallelInputs, parallel), [&](const Chunk& chunk) {
        const Linear& l = chunk.product->layer;
        kernels_for(l).quantize(l, *chunk.product->activations, chunk.begin, chunk.end);
    });
}

void multiply(const std::vector<Product>& products, const Parallel& parallel) {
    int64_t count = 0, cost = 0;
    for (const Product& product : products) {
        const Shape& s = product.layer.weight.shape;
        count += product.layer.rows * s.out_features * s.in_features;
        cost += tile_cost(product.layer) * s.tiles();
    }
    const Parallel threads = serial_if(count < kMinParallelProducts, parallel);
    // A chunk is a quarter of one thread's work, so that threads finish together, and at most 2 MiB of weights. Smaller
    // chunks are slower: the hardware's prefetching starts anew at each of them.
    const int64_t chunk_cost = cost / (4 * threads.threads);
    std::vector<Chunk> chunks;
    for (const Product& product : products) {
        const Shape& s = product.layer.weight.shape;
        int64_t tiles =
            std::max<int64_t>(1, std::min(chunk_cost / tile_cost(product.layer), kMostChunkWords / s.words_per_tile()));
        tiles += product.layer.rows > kGemvRows ? tiles % 2 : 0;  // gemm unpacks two tiles at a time
        for (int64_t t = 0; t < s.tiles(); t += tiles) {
            chunks.push_back({&product, t, std::min(t + tiles, s.tiles())});
        }
    }
    run_chunks(chunks, threads, [&](const Chunk& chunk) {
        const Linear& l = chunk.product->layer;
        const Kernels kernels = kernels_for(l);
        (l.rows <= kGemvRows ? kernels.gemv : kernels.gemm)(l, *chunk.product->activations, chunk.begin, chunk.end);
    });
    for (const Product& product : products) {
        linear_in_float32(product.layer, *product.activations, threads);
    }
}

}  // namespace qaig
