// The operators of torch.ops.qaig on the CPU. Python defines their schemas (transformers_qaig/nn/schema.py).
//
// Every argument is checked: packed tensors come from files that anybody may have written. The kernels are in cpu/.
// Only this folder includes torch, and of torch only the stable ABI.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/huge_pages.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/repack.h"
#include "ops/checks.h"
#include "ops/cpu_weight.h"
#include "ops/reference.h"

namespace {

using qaig::as_contiguous;
using qaig::check_bias;
using qaig::check_input;
using qaig::check_range;
using qaig::check_rotation;
using qaig::check_storage;
using qaig::checked_count;
using qaig::dtype_name;
using qaig::kCpu;
using qaig::Optional;
using qaig::PackedWeight;
using qaig::reference_linear;
using qaig::scalar;
using qaig::ScalarType;
using qaig::shape_of;
using qaig::Tensor;
using qaig::torch_threads;
using qaig::words_for;

std::vector<float> bias_floats(const Optional& bias, int64_t out_features) {
    if (!bias) {
        return {};
    }
    check_bias(*bias, out_features, kCpu);
    const Tensor flat = as_contiguous(*bias);
    std::vector<float> values(out_features);
    if (flat.scalar_type() == ScalarType::Double) {
        const auto* from = static_cast<const double*>(flat.const_data_ptr());
        for (int64_t i = 0; i < out_features; i++) {
            values[i] = static_cast<float>(from[i]);
        }
    } else {
        qaig::load_floats(flat.const_data_ptr(), scalar(flat.scalar_type()), 0, out_features, values.data());
    }
    return values;
}

// -- the operators

std::vector<Tensor> linear_many(const Tensor& x, const std::vector<Tensor>& packed, const std::vector<Tensor>& scale,
                                const std::vector<Optional>& zero, const std::vector<Optional>& bias,
                                const std::vector<int64_t>& rotation_block, const std::vector<int64_t>& rotation_seed,
                                const std::vector<int64_t>& out_features, const std::vector<int64_t>& bits,
                                const std::vector<int64_t>& group_size, int64_t activation_bits, int64_t layout) {
    check_input(x, activation_bits);
    STD_TORCH_CHECK(x.scalar_type() != ScalarType::Double, "x must be float16, bfloat16 or float32, got float64");
    const size_t count =
        checked_count(packed, scale, zero, bias, rotation_block, rotation_seed, out_features, bits, group_size);
    std::vector<int64_t> y_shape = shape_of(x);
    const int64_t in_features = y_shape.back();
    const Tensor flat = as_contiguous(x);
    std::vector<PackedWeight> weights;
    std::vector<std::vector<float>> biases;
    std::vector<qaig::Rotation> rotations;
    for (size_t i = 0; i < count; i++) {  // all checks come before the first product
        weights.emplace_back(packed[i], scale[i], zero[i], out_features[i], in_features, bits[i], group_size[i],
                             layout);
        biases.push_back(bias_floats(bias[i], out_features[i]));
        check_rotation(rotation_block[i], rotation_seed[i], in_features);
        rotations.push_back({rotation_block[i], rotation_block[i] ? static_cast<uint64_t>(rotation_seed[i]) : 0});
    }
    std::vector<Tensor> results;
    std::vector<qaig::Linear> layers;
    for (size_t i = 0; i < count; i++) {
        y_shape.back() = out_features[i];
        results.push_back(torch::stable::new_empty(x, y_shape));
        layers.push_back({weights[i].view, flat.const_data_ptr(), results[i].mutable_data_ptr(),
                          scalar(x.scalar_type()), x.numel() / in_features, bias[i] ? biases[i].data() : nullptr,
                          rotations[i], static_cast<int>(activation_bits)});
    }
    qaig::linear(layers, torch_threads());
    return results;
}

Tensor linear(const Tensor& x, const Tensor& packed, const Tensor& scale, const Optional& zero, const Optional& bias,
              int64_t rotation_block, int64_t rotation_seed, int64_t out_features, int64_t bits, int64_t group_size,
              int64_t activation_bits, int64_t layout) {
    check_input(x, activation_bits);
    if (x.scalar_type() == ScalarType::Double) {
        // An error within the reference would lose its message, so the same checks run here first.
        PackedWeight(packed, scale, zero, out_features, x.size(-1), bits, group_size, layout);
        bias_floats(bias, out_features);
        check_rotation(rotation_block, rotation_seed, x.size(-1));
        return reference_linear(x, packed, scale, zero, bias, rotation_block, rotation_seed, out_features, bits,
                                group_size, activation_bits, layout);
    }
    return linear_many(x, {packed}, {scale}, {zero}, {bias}, {rotation_block}, {rotation_seed}, {out_features}, {bits},
                       {group_size}, activation_bits, layout)[0];
}

// Checkpoint layout to CPU layout, or back. Without zero points the third tensor is empty.
std::tuple<Tensor, Tensor, Tensor> repack(const Tensor& packed, const Tensor& scale, const Optional& zero,
                                          int64_t out_features, int64_t in_features, int64_t bits, int64_t group_size,
                                          int64_t layout) {
    const PackedWeight weight(packed, scale, zero, out_features, in_features, bits, group_size, layout);
    const qaig::Shape& s = weight.view.shape;
    STD_TORCH_CHECK(qaig::has_cpu_layout(s.bits), "the CPU has a layout of its own for 2, 3, 4 and 8 bits, got ", bits);
    const bool to_cpu = weight.view.in_checkpoint_layout;
    const int64_t row_words = words_for(in_features, bits), groups = s.groups();
    const auto shaped = [&](std::vector<int64_t> cpu, std::vector<int64_t> checkpoint, ScalarType type) {
        return torch::stable::new_empty(packed, to_cpu ? cpu : checkpoint, type);
    };
    const Tensor words =
        shaped({s.tiles(), s.units(), s.bits, qaig::kTileRows}, {out_features, row_words}, ScalarType::Int);
    const Tensor scales = shaped({s.tiles(), groups, qaig::kTileRows}, {out_features, groups}, scale.scalar_type());
    // Zero points leave the CPU layout as bytes. Python packs them.
    const Tensor zeros = zero ? shaped({s.tiles(), groups, qaig::kTileRows}, {out_features, groups}, ScalarType::Byte)
                              : torch::stable::new_empty(packed, {0}, ScalarType::Byte);
    auto* out = static_cast<uint32_t*>(words.mutable_data_ptr());
    auto* out_scale = static_cast<char*>(scales.mutable_data_ptr());
    auto* out_zero = static_cast<uint8_t*>(zeros.mutable_data_ptr());
    const int64_t tile_words = to_cpu ? s.words_per_tile() : qaig::kTileRows * row_words;
    const int64_t tile_scales = groups * qaig::kTileRows, scale_size = qaig::size_of(weight.view.scale_type);
    qaig::parallel_chunks(torch_threads(), s.tiles(), 1, [&] {
        return [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; t++) {
                (to_cpu ? qaig::tile_from_checkpoint : qaig::tile_to_checkpoint)(
                    weight.view, t, out + t * tile_words, out_scale + t * tile_scales * scale_size,
                    out_zero + (zero ? t * tile_scales : 0));
            }
        };
    });
    qaig::move_to_huge_pages(words.const_data_ptr(), words.numel() * words.element_size());
    return {words, scales, zeros};
}

// Rows [start, stop) of the weight in float32.
Tensor dequantize(const Tensor& packed, const Tensor& scale, const Optional& zero, int64_t out_features,
                  int64_t in_features, int64_t bits, int64_t group_size, int64_t layout, int64_t start, int64_t stop) {
    const PackedWeight weight(packed, scale, zero, out_features, in_features, bits, group_size, layout);
    check_range("rows", start, stop, out_features);
    const Tensor y = torch::stable::new_empty(packed, {stop - start, in_features}, ScalarType::Float);
    auto* out = static_cast<float*>(y.mutable_data_ptr());
    const int64_t first = start / qaig::kTileRows, tiles = (stop + qaig::kTileRows - 1) / qaig::kTileRows - first;
    if (start == stop) {
        return y;
    }
    qaig::parallel_chunks(torch_threads(), tiles, 1, [&] {
        return [&, reader = std::make_shared<qaig::TileReader>(weight.view),
                scratch = std::make_shared<qaig::Buffer<float>>(in_features * qaig::kTileRows)](int64_t begin,
                                                                                                int64_t end) {
            for (int64_t t = first + begin; t < first + end; t++) {
                const int64_t row0 = t * qaig::kTileRows, from = std::max(start, row0);
                const int64_t to = std::min(stop, row0 + qaig::kTileRows);
                qaig::dequantize_rows(weight.view, (*reader)(t), from - row0, to - row0,
                                      out + (from - start) * in_features, scratch->data());
            }
        };
    });
    return y;
}

// Columns [start, stop) of the weight in bfloat16, for all rows.
Tensor dequantize_columns(const Tensor& packed, const Tensor& scale, const Optional& zero, int64_t out_features,
                          int64_t in_features, int64_t bits, int64_t group_size, int64_t layout, int64_t start,
                          int64_t stop) {
    const PackedWeight weight(packed, scale, zero, out_features, in_features, bits, group_size, layout);
    check_range("columns", start, stop, in_features);
    const Tensor y = torch::stable::new_empty(packed, {out_features, stop - start}, ScalarType::BFloat16);
    auto* out = static_cast<uint16_t*>(y.mutable_data_ptr());
    if (start == stop) {
        return y;
    }
    qaig::parallel_chunks(torch_threads(), weight.view.shape.tiles(), 1, [&] {
        return [&, reader = std::make_shared<qaig::TileReader>(weight.view)](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; t++) {
                const int64_t row0 = t * qaig::kTileRows;
                const int64_t rows = std::min<int64_t>(qaig::kTileRows, out_features - row0);
                qaig::dequantize_columns(weight.view, (*reader)(t), rows, start, stop, out + row0 * (stop - start));
            }
        };
    });
    return y;
}

// Rows of the weight in float32, one for each id.
Tensor embedding(const Tensor& ids, const Tensor& packed, const Tensor& scale, const Optional& zero,
                 int64_t out_features, int64_t in_features, int64_t bits, int64_t group_size, int64_t layout) {
    const PackedWeight weight(packed, scale, zero, out_features, in_features, bits, group_size, layout);
    const ScalarType type = ids.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Int || type == ScalarType::Long, "ids must have dtype int32 or int64, got ",
                    dtype_name(type));
    STD_TORCH_CHECK(ids.is_cpu(), "ids are not on the CPU but the table is: move both to one device");
    check_storage("ids", ids);
    const Tensor flat = as_contiguous(ids);
    std::vector<int64_t> rows(flat.numel());
    for (size_t i = 0; i < rows.size(); i++) {
        rows[i] = type == ScalarType::Int ? static_cast<const int32_t*>(flat.const_data_ptr())[i]
                                          : static_cast<const int64_t*>(flat.const_data_ptr())[i];
        STD_TORCH_CHECK(0 <= rows[i] && rows[i] < out_features, "id ", rows[i], " is not within the ", out_features,
                        " rows of the table");
    }
    std::vector<int64_t> y_shape = shape_of(ids);
    y_shape.push_back(in_features);
    const Tensor y = torch::stable::new_empty(packed, y_shape, ScalarType::Float);
    auto* out = static_cast<float*>(y.mutable_data_ptr());
    qaig::parallel_chunks(torch_threads(), static_cast<int64_t>(rows.size()), 1, [&] {
        return [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++) {
                qaig::dequantize_row(weight.view, rows[i], out + i * in_features);
            }
        };
    });
    return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(qaig, CPU, m) {
    m.impl("linear", TORCH_BOX(&linear));
    m.impl("linear_many", TORCH_BOX(&linear_many));
    m.impl("repack", TORCH_BOX(&repack));
    m.impl("dequantize", TORCH_BOX(&dequantize));
    m.impl("dequantize_columns", TORCH_BOX(&dequantize_columns));
    m.impl("embedding", TORCH_BOX(&embedding));
}
