// Schemas of the operators, for a library that is loaded without the Python of transformers_qaig: a kernel of the Hub.
//
// transformers_qaig/nn/schema.py has the same, and a test compares them. csrc/ops registers the functions.
#include <torch/csrc/stable/library.h>

#if __has_include("registration.h")
#include "registration.h"  // kernel-builder's
#endif

#define QAIG_SCHEMAS(NAMESPACE, m) STABLE_TORCH_LIBRARY(NAMESPACE, m)

QAIG_SCHEMAS(TORCH_EXTENSION_NAME, m) {
    m.def(
        "linear(Tensor x, Tensor packed, Tensor scale, Tensor? zero, Tensor? bias, int rotation_block, "
        "int rotation_seed, int out_features, int bits, int group_size, int activation_bits, int layout) -> Tensor");
    m.def(
        "linear_many(Tensor x, Tensor[] packed, Tensor[] scale, Tensor?[] zero, Tensor?[] bias, int[] rotation_block, "
        "int[] rotation_seed, int[] out_features, int[] bits, int[] group_size, int activation_bits, int layout) "
        "-> Tensor[]");
    m.def(
        "repack(Tensor packed, Tensor scale, Tensor? zero, int out_features, int in_features, int bits, "
        "int group_size, int layout) -> (Tensor, Tensor, Tensor)");
    m.def(
        "dequantize(Tensor packed, Tensor scale, Tensor? zero, int out_features, int in_features, int bits, "
        "int group_size, int layout, int start, int stop) -> Tensor");
    m.def(
        "dequantize_columns(Tensor packed, Tensor scale, Tensor? zero, int out_features, int in_features, int bits, "
        "int group_size, int layout, int start, int stop) -> Tensor");
    m.def(
        "embedding(Tensor ids, Tensor packed, Tensor scale, Tensor? zero, int out_features, int in_features, int bits, "
        "int group_size, int layout) -> Tensor");
    m.def(
        "experts_linear(Tensor x, Tensor offsets, Tensor packed, Tensor scale, Tensor? zero, int[] bits, "
        "int out_features, int group_size, int activation_bits, int layout) -> Tensor");
    m.def(
        "gptq_columns(Tensor(a!) rows, Tensor(b!) errors, Tensor(c!) codes, Tensor factor, Tensor groups, "
        "Tensor step, Tensor scale, Tensor zero, int max_code) -> ()");
    m.def("experts_route(Tensor hidden, Tensor index, int num_experts, int num_choices) -> (Tensor, Tensor, Tensor)");
    m.def("experts_sum(Tensor rows, Tensor weights, Tensor order) -> Tensor");
}

#ifdef REGISTER_EXTENSION
REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
#endif
