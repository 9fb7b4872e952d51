// The CUDA kernels of torch.ops.qaig, as ops.cpp is for the CPU. Empty in a library that is built without nvcc.
//
// QAIG_EMULATED is how tests compile this file: the kernels then run on the emulator and the tensors are the CPU's.
#if defined(QAIG_CUDA_ARCHS) || defined(QAIG_EMULATED)

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <map>
#include <tuple>

#if !defined(QAIG_EMULATED)
#include <dlfcn.h>
#endif

#include "checks.h"
#include "cuda/kernels.h"
#include "cuda/tuning.h"

namespace qaig {
namespace {

constexpr int64_t kOnDisk = 0, kCudaOrder = 2;
constexpr int64_t kMostRows = (1LL << 31) - 1;  // of x that are rounded to 8 bits: each is a block of a launch

// -- torch's device and stream

#if defined(QAIG_EMULATED)

struct Device {
    explicit Device(const Tensor&) {}
    int index = kCpu;
    void* stream = nullptr;
};

#else

// The stable ABI has no name for the current stream that a library can link to without CUDA: it is looked up in the
// libraries of a torch that has it.
void* current_stream(int device) {
    using Function = AOTITorchError (*)(int32_t, void**);
    static const auto function = [] {
        void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
        return reinterpret_cast<Function>(
            dlsym(library ? library : RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
    }();
    STD_TORCH_CHECK(function, "this torch has no aoti_torch_get_current_cuda_stream: is it built with CUDA?");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(function(device, &stream));
    return stream;
}

// The device of a tensor, current as long as this lives.
struct Device {
    explicit Device(const Tensor& t) : index(t.get_device()), guard(index), stream(current_stream(index)) {}
    int index;
    torch::stable::accelerator::DeviceGuard guard;
    void* stream;
};

#endif

void check_status(int status, const char* what) {
    STD_TORCH_CHECK(status == QAIG_OK, what, " failed: ", qaig_cuda_message(status));
}

// -- arguments

int type_of(ScalarType type) {
    return type == ScalarType::Half ? QAIG_F16 : type == ScalarType::BFloat16 ? QAIG_BF16 : QAIG_F32;
}

// Contiguous, and where kernels can read 16 bytes at once.
Tensor as_aligned(const Tensor& t) {
    const Tensor c = as_contiguous(t);
    return reinterpret_cast<uintptr_t>(c.const_data_ptr()) % 16 ? torch::stable::clone(c) : c;
}

// A packed weight whose tensors were checked; holds what it points to.
struct PackedWeight {
    PackedWeight(const Tensor& packed, const Tensor& scale_, const Optional& zero_, int64_t out_features,
                 int64_t in_features, int64_t bits, int64_t group_size, int64_t layout, int device) {
        const int64_t channels = checked_group(out_features, in_features, bits, group_size);
        STD_TORCH_CHECK(layout == kCudaOrder, "layout=", layout, " is not the CUDA kernels' order, which is 2");
        STD_TORCH_CHECK(cuda::has_order(static_cast<int>(bits)), "layout=2 is for 2, 3, 4 and 8 bits, got bits=", bits);
        constexpr int64_t kMost = 1 << 24;
        STD_TORCH_CHECK(out_features < kMost && in_features < kMost,
                        "the CUDA kernels take out_features and in_features below 2^24, got ", out_features, " and ",
                        in_features);
        shape = {static_cast<int>(out_features), static_cast<int>(in_features), static_cast<int>(channels),
                 static_cast<int>(bits)};
        const int64_t blocks = shape.row_blocks(), groups = shape.groups();
        check_tensor("packed", packed, {blocks, shape.tiles(), bits, 32, 4}, {ScalarType::Int}, device);
        check_tensor("scale", scale_, {blocks, groups, cuda::kBlockRows},
                     {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float}, device);
        if (zero_) {
            check_tensor("zero", *zero_, {blocks, groups, cuda::kBlockRows}, {ScalarType::Byte}, device);
            zero = as_aligned(*zero_);
        }
        words = as_aligned(packed);
        scale = as_aligned(scale_);
    }

    const unsigned char* zeros() const {
        return zero ? static_cast<const unsigned char*>(zero->const_data_ptr()) : nullptr;
    }

    cuda::Shape shape;
    Tensor words, scale;
    Optional zero;
};

Optional checked_bias(const Optional& bias, int64_t out_features, int device) {
    if (!bias) {
        return std::nullopt;
    }
    check_tensor("bias", *bias, {out_features},
                 {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float, ScalarType::Double}, device);
    return as_contiguous(bias->scalar_type() == ScalarType::Double ? torch::stable::to(*bias, ScalarType::Float)
                                                                   : *bias);
}

// -- x as it is multiplied

// How a layer is multiplied: by the kernels that read packed words, by torch with the weight unpacked, or by the plain
// torch of nn/reference.py.
enum class Way { kDecode, kFused, kInteger, kDense, kReference };

struct Layer {
    const PackedWeight* weight;
    const Optional* bias;
    int64_t rotation_block, rotation_seed;
    Tensor y;  // [rows][out_features]
    Way way;

    // Channels of a group in the order of slots that x is to have: all of them, unless groups are padded.
    int input_group() const {
        const cuda::Shape& s = weight->shape;
        return way == Way::kDense || s.in_channel_order() ? s.in_features : s.group_size;
    }
};

// As kernels.h describes it. Rounded to 8 bits if there is a token_scale.
struct Input {
    Tensor x;
    Optional token_scale;
    int64_t stride, slots;

    const float* token_scales(int64_t row) const {
        return token_scale ? static_cast<const float*>(token_scale->const_data_ptr()) + row : nullptr;
    }
};

// x [rows][in_features] for each layer, made once for all that read it alike.
class Inputs {
public:
    Inputs(const Tensor& x, bool round, const Device& device) : x_(x), round_(round), device_(device) {}

    const Input& of(const Layer& l) {
        const bool bytes = l.way == Way::kInteger;
        const auto key =
            std::make_tuple(l.input_group(), l.rotation_block, l.rotation_block ? l.rotation_seed : 0, bytes);
        const auto known = inputs_.find(key);
        return known != inputs_.end() ? known->second : inputs_.emplace(key, make(l, bytes)).first->second;
    }

private:
    Input make(const Layer& l, bool bytes) const {
        const Tensor x = l.rotation_block ? as_aligned(x_) : x_;
        const int64_t rows = x.size(0), in_features = x.size(1);
        const cuda::Shape order = {1, static_cast<int>(in_features), l.input_group(), 2};
        if (!round_ && order.in_channel_order() && in_features % 8 == 0) {
            return {as_aligned(x), std::nullopt, in_features, in_features};
        }
        const int64_t slots = order.slots();
        Input input = {torch::stable::new_empty(x, {rows, slots}), std::nullopt, bytes ? 2 * slots : slots, slots};
        float* token_scale = nullptr;
        if (round_) {
            input.token_scale = torch::stable::new_empty(x, {rows}, ScalarType::Float);
            token_scale = static_cast<float*>(input.token_scale->mutable_data_ptr());
        }
        const QaigArrange arguments = {x.const_data_ptr(),
                                       input.x.mutable_data_ptr(),
                                       token_scale,
                                       static_cast<unsigned long long>(l.rotation_seed),
                                       static_cast<int>(l.rotation_block),
                                       static_cast<int>(rows),
                                       order.in_features,
                                       order.group_size,
                                       order.slots(),
                                       bytes};
        check_status(qaig_cuda_arrange(&arguments, type_of(x.scalar_type()), device_.stream), "arranging x");
        return input;
    }

    const Tensor& x_;
    bool round_;
    const Device& device_;
    std::map<std::tuple<int, int64_t, int64_t, bool>, Input> inputs_;
};

// -- packed weights as they are

using WorkspaceOf = int (*)(const QaigDecode*, long long*, long long*);
using Launch = int (*)(const QaigDecode*, int, void*);

// Rows [row, row + rows) of x by up to QAIG_MOST_LAYERS layers, all multiplied in one way.
void launch_product(const Tensor& x, const std::vector<const Layer*>& layers, Inputs& inputs, int64_t row, int64_t rows,
                    const Device& device) {
    const Way way = layers[0]->way;
    const int64_t size = x.element_size();
    QaigDecode arguments = {};
    arguments.rows = static_cast<int>(rows);
    arguments.layer_count = static_cast<int>(layers.size());
    for (size_t i = 0; i < layers.size(); i++) {
        const Layer& l = *layers[i];
        const PackedWeight& w = *l.weight;
        const Input& in = inputs.of(l);
        QaigLayer& to = arguments.layers[i];
        to.words = w.words.const_data_ptr();
        to.scale = w.scale.const_data_ptr();
        to.zero = w.zeros();
        to.x = static_cast<const char*>(in.x.const_data_ptr()) + row * in.stride * (way == Way::kInteger ? 1 : size);
        to.y = static_cast<char*>(l.y.mutable_data_ptr()) + row * w.shape.out_features * size;
        to.token_scale = in.token_scales(row);
        if (*l.bias) {
            to.bias = (*l.bias)->const_data_ptr();
            to.bias_type = type_of((*l.bias)->scalar_type());
        }
        to.x_stride = in.stride;
        to.x_slots = static_cast<int>(in.slots);
        to.out_features = w.shape.out_features;
        to.in_features = w.shape.in_features;
        to.group_size = w.shape.group_size;
        to.bits = w.shape.bits;
        to.scale_type = type_of(w.scale.scalar_type());
    }
    const WorkspaceOf workspace = way == Way::kDecode  ? qaig_cuda_decode_workspace
                                  : way == Way::kFused ? qaig_cuda_fused_workspace
                                                       : qaig_cuda_integer_workspace;
    const Launch launch = way == Way::kDecode  ? qaig_cuda_decode
                          : way == Way::kFused ? qaig_cuda_fused
                                               : qaig_cuda_integer;
    long long partial_bytes = 0, counters = 0;
    check_status(workspace(&arguments, &partial_bytes, &counters), "planning a product");
    const Tensor partials = torch::stable::new_empty(x, {static_cast<int64_t>(partial_bytes) / 4}, ScalarType::Float);
    arguments.partials = static_cast<float*>(partials.mutable_data_ptr());
    check_status(qaig_cuda_counters(device.stream, counters, &arguments.counters), "taking counters");
    Tensor zeros;
    if (!arguments.counters) {
        zeros = torch::stable::new_zeros(x, {static_cast<int64_t>(counters)}, ScalarType::Int);
        arguments.counters = static_cast<unsigned*>(zeros.mutable_data_ptr());
    }
    check_status(launch(&arguments, type_of(x.scalar_type()), device.stream), "a product");
}

// All layers in as few launches as possible: by the decode kernels for each 16 rows of x [rows][in_features], or by the
// fused or the integer kernels, which take all rows at once, but layers of one width.
void multiply_packed(const Tensor& x, const std::vector<Layer>& layers, Inputs& inputs, const Device& device) {
    std::map<std::pair<Way, int>, std::vector<const Layer*>> together;
    for (const Layer& l : layers) {
        together[{l.way, l.way == Way::kDecode ? cuda::kMixed : l.weight->shape.bits}].push_back(&l);
    }
    for (const auto& [key, all] : together) {
        const int64_t rows = x.size(0), step = key.first == Way::kDecode ? int64_t{QAIG_MOST_ROWS} : rows;
        for (int64_t row = 0; row < rows; row += step) {
            for (auto first = all.begin(); first != all.end();) {
                const auto last = first + std::min<ptrdiff_t>(QAIG_MOST_LAYERS, all.end() - first);
                launch_product(x, {first, last}, inputs, row, std::min(step, rows - row), device);
                first = last;
            }
        }
    }
}

// -- many rows

void dequantize_rows(const PackedWeight& w, int64_t start, int64_t stop, const Tensor& out, const Device& device) {
    const QaigDequantize arguments = {w.words.const_data_ptr(),
                                      w.scale.const_data_ptr(),
                                      w.zeros(),
                                      out.mutable_data_ptr(),
                                      static_cast<int>(start),
                                      static_cast<int>(stop),
                                      w.shape.out_features,
                                      w.shape.in_features,
                                      w.shape.group_size,
                                      w.shape.bits,
                                      type_of(w.scale.scalar_type()),
                                      type_of(out.scalar_type())};
    check_status(qaig_cuda_dequantize(&arguments, device.stream), "unpacking a weight");
}

Tensor detached(const Tensor& t) {
    std::array<StableIValue, 1> stack{torch::stable::detail::from(t)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::detach", "", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
}

// y = x W' + bias by torch, into rows of y that may be apart.
void dense_linear(const Tensor& x, const Tensor& weight, const Optional& bias, const Tensor& y) {
    using torch::stable::detail::from;
    std::array<StableIValue, 4> stack{from(x), from(weight), from(bias), from(y)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "out", stack.data(), TORCH_ABI_VERSION));
    const auto result = torch::stable::detail::to<Tensor>(stack[0]);  // y again: takes over what the stack held
}

// y = token_scale * products + bias in float32.
void scale_rows(const Tensor& products, const Tensor& token_scale, const Optional& bias, Tensor y) {
    using torch::stable::detail::from;
    const Tensor column = torch::stable::view(token_scale, {token_scale.size(0), 1});
    std::array<StableIValue, 2> stack{from(products), from(column)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mul", "Tensor", stack.data(), TORCH_ABI_VERSION));
    auto scaled = torch::stable::detail::to<Tensor>(stack[0]);
    if (bias) {
        scaled = torch::stable::subtract(scaled, *bias, -1.0);
    }
    torch::stable::copy_(y, scaled);
}

// The weight is unpacked some rows at a time into one piece of memory, which the cache holds. Rounded to 8 bits, x are
// integers times a power of two, exact in 16 bits, and only their products are rounded to those.
void unpack_and_multiply(const Tensor& x, const Layer& l, Inputs& inputs, bool round, long long chunk_bytes,
                         const Device& device) {
    const PackedWeight& w = *l.weight;
    const int64_t n = w.shape.out_features, k = w.shape.in_features, blocks = cuda::kBlockRows;
    const int64_t fitting = chunk_bytes / (k * static_cast<int64_t>(x.element_size())) / blocks * blocks;
    const int64_t step = std::min<int64_t>(n, std::max(blocks, fitting));
    const Tensor memory = torch::stable::new_empty(x, {step, k});
    Tensor input = detached(x);
    Optional token_scale, bias;
    if (round) {
        const Input& in = inputs.of(l);
        Tensor slots = in.x;
        input = torch::stable::narrow(slots, 1, 0, k);
        token_scale = in.token_scale;
    }
    if (*l.bias) {
        bias = detached(torch::stable::to(**l.bias, round ? ScalarType::Float : x.scalar_type()));
    }
    for (int64_t start = 0; start < n; start += step) {
        const int64_t rows = std::min(step, n - start);
        Tensor part = memory, y = l.y;
        part = torch::stable::narrow(part, 0, 0, rows);
        y = torch::stable::narrow(y, 1, start, rows);
        Optional part_bias = bias;
        if (part_bias) {
            part_bias = torch::stable::narrow(*part_bias, 0, start, rows);
        }
        dequantize_rows(w, start, start + rows, part, device);
        if (token_scale) {
            const Tensor products = torch::stable::new_empty(x, {x.size(0), rows});
            dense_linear(input, part, std::nullopt, products);
            scale_rows(products, *token_scale, part_bias, y);
        } else {
            dense_linear(input, part, part_bias, y);
        }
    }
}

// -- the operators

// Rotated values that are not rounded to integers would lose more, or overflow, in 16 bits.
Way way_of(const PackedWeight& w, int64_t rows, bool round, bool rotate, const cuda::Tuning& tuning) {
    if ((rotate && !round) || (round && rows > kMostRows)) {
        return Way::kReference;
    }
    if (w.scale.scalar_type() == ScalarType::Float) {
        return Way::kDense;
    }
    if (rows <= tuning.most_decode_rows) {
        return Way::kDecode;
    }
    const bool fits = rows <= (round ? tuning.most_integer_rows : tuning.most_fused_rows) &&
                      cuda::tiled_steps(w.shape, static_cast<int>(rows)) < cuda::kMostSteps / QAIG_MOST_LAYERS;
    return !fits ? Way::kDense : round ? Way::kInteger : Way::kFused;
}

bool has_kernels(const Tensor& x, int64_t layout) {
    return layout == kCudaOrder && (x.scalar_type() == ScalarType::Half || x.scalar_type() == ScalarType::BFloat16);
}

std::vector<Tensor> linear_many(const Tensor& x, const std::vector<Tensor>& packed, const std::vector<Tensor>& scale,
                                const std::vector<Optional>& zero, const std::vector<Optional>& bias,
                                const std::vector<int64_t>& rotation_block, const std::vector<int64_t>& rotation_seed,
                                const std::vector<int64_t>& out_features, const std::vector<int64_t>& bits,
                                const std::vector<int64_t>& group_size, int64_t activation_bits, int64_t layout) {
    check_activation("x", x);
    check_activation_bits(activation_bits);
    const size_t count = packed.size();
    STD_TORCH_CHECK(
        scale.size() == count && zero.size() == count && bias.size() == count && rotation_block.size() == count &&
            rotation_seed.size() == count && out_features.size() == count && bits.size() == count &&
            group_size.size() == count,
        "packed, scale, zero, bias, rotation_block, rotation_seed, out_features, bits and group_size must have "
        "one entry per layer");
    for (size_t i = 0; i < count; i++) {
        check_rotation(rotation_block[i], rotation_seed[i], x.size(-1));
    }
    STD_TORCH_CHECK(layout == kOnDisk || layout == kCudaOrder, "layout=", layout,
                    " belongs to another backend: CUDA devices read 0 (the on-disk order) and 2 (their own)");
    // An error within the reference would come back without its text, so what it would refuse is refused here.
    const auto by_reference = [&](size_t i) {
        const int device = x.is_cpu() ? kCpu : x.get_device();
        if (layout == kOnDisk) {
            const int64_t channels = checked_group(out_features[i], x.size(-1), bits[i], group_size[i]);
            check_on_disk(packed[i], scale[i], zero[i], out_features[i], x.size(-1), bits[i], x.size(-1) / channels,
                          device);
        } else {
            PackedWeight(packed[i], scale[i], zero[i], out_features[i], x.size(-1), bits[i], group_size[i], layout,
                         device);
        }
        checked_bias(bias[i], out_features[i], device);
        return reference_linear(x, packed[i], scale[i], zero[i], bias[i], rotation_block[i], rotation_seed[i],
                                out_features[i], bits[i], group_size[i], activation_bits, layout);
    };
    std::vector<Tensor> results;
    if (!has_kernels(x, layout)) {
        for (size_t i = 0; i < count; i++) {
            results.push_back(by_reference(i));
        }
        return results;
    }
    const Device device(x);
    std::vector<int64_t> y_shape = shape_of(x);
    const int64_t in_features = y_shape.back();
    std::vector<PackedWeight> weights;
    std::vector<Optional> biases;
    for (size_t i = 0; i < count; i++) {  // everything is checked before anything is computed
        weights.emplace_back(packed[i], scale[i], zero[i], out_features[i], in_features, bits[i], group_size[i], layout,
                             device.index);
        biases.push_back(checked_bias(bias[i], out_features[i], device.index));
    }
    if (count == 0) {
        return results;
    }
    const int64_t rows = x.numel() / in_features;
    int processors = 0, capability = 0;
    check_status(qaig_cuda_device(&processors, &capability), "asking about the device");
    const cuda::Tuning& tuning = cuda::tuning_for(capability);
    const Tensor flat = torch::stable::reshape(as_contiguous(x), {rows, in_features});
    const bool round = activation_bits == 8;
    Inputs inputs(flat, round, device);
    std::vector<Layer> packed_layers;
    for (size_t i = 0; i < count; i++) {
        const Way way = way_of(weights[i], rows, round, rotation_block[i] != 0, tuning);
        if (rows > 0 && way == Way::kReference) {
            results.push_back(by_reference(i));
            continue;
        }
        y_shape.back() = out_features[i];
        results.push_back(torch::stable::new_empty(x, y_shape));
        if (rows == 0) {
            continue;
        }
        const Layer layer = {&weights[i],
                             &biases[i],
                             rotation_block[i],
                             rotation_seed[i],
                             torch::stable::view(results.back(), {rows, out_features[i]}),
                             way};
        if (way == Way::kDense) {
            unpack_and_multiply(flat, layer, inputs, round, tuning.chunk_bytes, device);
        } else {
            packed_layers.push_back(layer);
        }
    }
    multiply_packed(flat, packed_layers, inputs, device);
    return results;
}

Tensor linear(const Tensor& x, const Tensor& packed, const Tensor& scale, const Optional& zero, const Optional& bias,
              int64_t rotation_block, int64_t rotation_seed, int64_t out_features, int64_t bits, int64_t group_size,
              int64_t activation_bits, int64_t layout) {
    return linear_many(x, {packed}, {scale}, {zero}, {bias}, {rotation_block}, {rotation_seed}, {out_features}, {bits},
                       {group_size}, activation_bits, layout)[0];
}

// Rows [start, stop) of the weight in float32.
Tensor dequantize(const Tensor& packed, const Tensor& scale, const Optional& zero, int64_t out_features,
                  int64_t in_features, int64_t bits, int64_t group_size, int64_t layout, int64_t start, int64_t stop) {
    const Device device(packed);
    const PackedWeight weight(packed, scale, zero, out_features, in_features, bits, group_size, layout, device.index);
    STD_TORCH_CHECK(0 <= start && start <= stop && stop <= out_features, "rows ", start, " to ", stop,
                    " are not within the ", out_features, " of the weight");
    const Tensor y = torch::stable::new_empty(packed, {stop - start, in_features}, ScalarType::Float);
    dequantize_rows(weight, start, stop, y, device);
    return y;
}

}  // namespace
}  // namespace qaig

#if defined(QAIG_EMULATED)
STABLE_TORCH_LIBRARY_IMPL(qaig_emulated, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(qaig, CUDA, m) {
#endif
    m.impl("linear", TORCH_BOX(&qaig::linear));
    m.impl("linear_many", TORCH_BOX(&qaig::linear_many));
    m.impl("dequantize", TORCH_BOX(&qaig::dequantize));
}

#endif
