// Products of several layers in one parallel region, so that threads start once and finish together.
#pragma once

#include <tuple>
#include <vector>

#include "cpu/activations.h"
#include "cpu/types.h"

namespace qaig {

constexpr int64_t kMaxRows = 1024;  // rows of x whose integers are in memory at once

// One layer and its x as integers, of sizes that fit the instruction set in use.
struct Product {
    Linear layer;
    Activations* activations;
};

// What tells whether two layers of one x can share its integers: group size (where segments end), rotation, and form.
using ActivationsKey = std::tuple<int64_t, int64_t, uint64_t, Form>;
ActivationsKey activations_key(const Linear& l);

// Integers for the rows of `l`, not filled yet.
Activations activations_for(const Linear& l);

// Fills the integers of every product; of those that share them the first one's layer does it.
void quantize(const std::vector<Product>& products, const Parallel& parallel);

// Computes every product from its integers.
void multiply(const std::vector<Product>& products, const Parallel& parallel);

}  // namespace qaig
