// Computes products of several layers in one parallel region, so that threads start once and finish together.
#pragma once

#include <tuple>
#include <vector>

#include "cpu/activations.h"
#include "cpu/types.h"

namespace qaig {

constexpr int64_t kMaxRows = 1024;  // rows of x that are quantized at once

// One layer and its quantized x, in the layout of the instruction set in use.
struct Product {
    Linear layer;
    Activations* activations;
};

// Layers of one x with equal keys share its integers: group size (where segments end), rotation and layout are equal.
using ActivationsKey = std::tuple<int64_t, int64_t, uint64_t, ActivationLayout>;
ActivationsKey activations_key(const Linear& l);

// Allocates integers for the rows of `l`.
Activations make_activations(const Linear& l);

// Quantizes the x of every product, once for products that share it.
void quantize(const std::vector<Product>& products, const Parallel& parallel);

// Computes every product from its quantized x.
void multiply(const std::vector<Product>& products, const Parallel& parallel);

}  // namespace qaig
