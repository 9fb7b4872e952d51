// Runs products of packed layers with every instruction set of the processor, without torch: `harness CALLS RESULTS`.
// Without arguments it prints what it detects: the instruction sets, the best one, the one in use, features, and what is
// wrong with QAIG_CPU_ISA.
//
// harness.py writes the calls and reads the results. Numbers are int64, arrays follow without padding:
//
//   calls    count; per call: count of layers, whether their weights are dequantized, too; per layer: the fields of
//            `Layer` in order, then words, scale, zero (if there is one), bias (if there is one), x
//   results  per call and instruction set: y of every layer, from the checkpoint layout and, where there is one, the CPU layout;
//            then the dequantized weights in float32
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/repack.h"

extern "C" const char* qaig_cpu_features();
extern "C" const char* qaig_cpu_isas();
extern "C" const char* qaig_cpu_best_isa();
extern "C" const char* qaig_cpu_isa();
extern "C" const char* qaig_cpu_isa_error();

namespace {

using Bytes = std::vector<char>;

struct File {
    FILE* file;

    File(const char* path, const char* mode) : file(std::fopen(path, mode)) { check(file != nullptr, path); }
    ~File() { std::fclose(file); }

    static void check(bool holds, const char* what) {
        if (!holds) {
            std::fprintf(stderr, "harness: %s failed\n", what);
            std::exit(1);
        }
    }
    Bytes read(int64_t size) {
        Bytes bytes(size);
        check(std::fread(bytes.data(), 1, size, file) == static_cast<size_t>(size), "reading");
        return bytes;
    }
    int64_t number() {
        int64_t value = 0;
        check(std::fread(&value, sizeof(value), 1, file) == 1, "reading");
        return value;
    }
    void write(const Bytes& bytes) {
        check(std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size(), "writing");
    }
};

struct Layer {
    int64_t bits, out_features, in_features, group_size, scale_type, has_zero, type, rows, has_bias, block, seed,
        activation_bits;
    Bytes words, scale, zero, bias, x, y;
    Bytes cpu_words, cpu_scale, cpu_zero;

    explicit Layer(File& in) {
        for (int64_t* field : {&bits, &out_features, &in_features, &group_size, &scale_type, &has_zero, &type, &rows,
                               &has_bias, &block, &seed, &activation_bits}) {
            *field = in.number();
        }
        const int64_t groups = shape().groups(), scale_size = size_of(static_cast<qaig::Scalar>(scale_type));
        words = in.read(out_features * stream_bytes(in_features));
        scale = in.read(out_features * groups * scale_size);
        zero = in.read(has_zero ? stream_bytes(out_features) * groups : 0);
        bias = in.read(has_bias ? out_features * 4 : 0);
        x = in.read(rows * in_features * value_size());
        y.resize(rows * out_features * value_size());
        repack(scale_size);
    }

    qaig::Shape shape() const { return {out_features, in_features, group_size, static_cast<int>(bits)}; }
    int64_t value_size() const { return size_of(static_cast<qaig::Scalar>(type)); }
    int64_t stream_bytes(int64_t codes) const { return (codes * bits + 31) / 32 * 4; }
    bool has_cpu_layout() const { return qaig::has_cpu_layout(static_cast<int>(bits)); }

    qaig::Weight weight(bool in_checkpoint_layout) const {
        const Bytes& z = in_checkpoint_layout ? zero : cpu_zero;
        return {shape(),
                in_checkpoint_layout,
                reinterpret_cast<const uint32_t*>((in_checkpoint_layout ? words : cpu_words).data()),
                (in_checkpoint_layout ? scale : cpu_scale).data(),
                static_cast<qaig::Scalar>(scale_type),
                has_zero ? z.data() : nullptr};
    }

    void repack(int64_t scale_size) {
        if (!has_cpu_layout()) {
            return;
        }
        const qaig::Shape s = shape();
        const int64_t tile_scales = s.groups() * qaig::kTileRows;
        cpu_words.resize(s.tiles() * s.words_per_tile() * 4);
        cpu_scale.resize(s.tiles() * tile_scales * scale_size);
        cpu_zero.resize(has_zero ? s.tiles() * tile_scales : 0);
        for (int64_t t = 0; t < s.tiles(); t++) {
            qaig::tile_from_checkpoint(
                weight(true), t, reinterpret_cast<uint32_t*>(cpu_words.data()) + t * s.words_per_tile(),
                cpu_scale.data() + t * tile_scales * scale_size,
                has_zero ? reinterpret_cast<uint8_t*>(cpu_zero.data()) + t * tile_scales : nullptr);
        }
    }

    qaig::Linear linear(bool in_checkpoint_layout) {
        return {weight(in_checkpoint_layout),
                x.data(),
                y.data(),
                static_cast<qaig::Scalar>(type),
                rows,
                has_bias ? reinterpret_cast<const float*>(bias.data()) : nullptr,
                {block, static_cast<uint64_t>(seed)},
                static_cast<int>(activation_bits)};
    }

    Bytes dequantized() const {
        const qaig::Weight w = weight(true);
        const qaig::TileReader reader(w);
        Bytes out(out_features * in_features * 4);
        std::vector<float> scratch(in_features * qaig::kTileRows);
        for (int64_t n = 0; n < out_features; n += qaig::kTileRows) {
            qaig::dequantize_rows(w, reader(n / qaig::kTileRows), 0,
                                  std::min<int64_t>(qaig::kTileRows, out_features - n),
                                  reinterpret_cast<float*>(out.data()) + n * in_features, scratch.data());
        }
        return out;
    }
};

constexpr qaig::Isa kIsas[] = {qaig::Isa::portable, qaig::Isa::avx2,         qaig::Isa::avxvnni,  qaig::Isa::avx512,
                               qaig::Isa::amx,      qaig::Isa::neon_dotprod, qaig::Isa::neon_i8mm};

// As if two threads shared the work, one after the other.
const qaig::Parallel kParallel = {[](int64_t size, void* context, qaig::Body body) {
                                      for (int64_t i = 0; i < size; i++) {
                                          body(context, i, i + 1);
                                      }
                                  },
                                  2};

void write_products(std::vector<Layer>& layers, bool in_checkpoint_layout, File& out) {
    std::vector<qaig::Linear> linears;
    for (Layer& layer : layers) {
        std::fill(layer.y.begin(), layer.y.end(), '\x55');
        linears.push_back(layer.linear(in_checkpoint_layout));
    }
    (linears.size() == 1 ? qaig::linear : qaig::grouped_linear)(linears, kParallel);
    for (const Layer& layer : layers) {
        out.write(layer.y);
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) {
        const char* error = qaig_cpu_isa_error();
        std::printf("%s\n%s\n%s\n%s\n%s\n", qaig_cpu_isas(), qaig_cpu_best_isa(), qaig_cpu_isa(), qaig_cpu_features(),
                    error ? error : "");
        return 0;
    }
    File in(arguments[1], "rb"), out(arguments[2], "wb");
    for (int64_t calls = in.number(); calls > 0; calls--) {
        const int64_t size = in.number();
        const bool dequantize = in.number() != 0;
        std::vector<Layer> layers;
        bool have_cpu_layout = true;
        for (int64_t i = 0; i < size; i++) {
            layers.emplace_back(in);
            have_cpu_layout &= layers.back().has_cpu_layout();
        }
        for (const qaig::Isa isa : kIsas) {
            if (!qaig::set_isa(isa)) {
                continue;
            }
            write_products(layers, true, out);
            if (have_cpu_layout) {
                write_products(layers, false, out);
            }
            for (const Layer& layer : layers) {
                out.write(dequantize ? layer.dequantized() : Bytes());
            }
        }
    }
    return 0;
}
