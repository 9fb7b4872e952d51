// The operator gptq_columns on the CPU: GPTQ's inner loop (transformers_qaig/rounding/gptq_columns.py). Its results are
// those of plain torch to the bit, so no product and sum may become one instruction.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/parallel.h"
#include "ops/cpu_weight.h"
#include "ops/gptq_columns.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif

namespace qaig {
namespace {

constexpr int64_t kLanes = 256;            // rows of the weight that are rounded at a time, in the first cache
constexpr int64_t kMinParallel = 1 << 14;  // weights; with fewer, starting threads costs more than they save
constexpr float kToInteger = 12582912.f;   // 1.5 · 2²³: adding it rounds to an integer, halves to the even one

struct Columns {
    float *rows, *errors;
    unsigned char* codes;
    const float *factor, *step, *scale, *zero;
    const int64_t* groups;
    int64_t count, size, factor_row, factor_column;
    float max_code;
};

// Rounds one column of some rows of the weight, which lie at `at`.
void round_column(const Columns& c, int64_t column, int64_t at, int64_t lanes, const float* w, float* error) {
    const int64_t of_group = c.groups[column] * c.size + at, of_column = column * c.size + at;
    const float *step = c.step + of_group, *scale = c.scale + of_group, *zero = c.zero + of_group;
    const float diagonal = c.factor[column * (c.factor_row + c.factor_column)];
    unsigned char* codes = c.codes + of_column;
    for (int64_t i = 0; i < lanes; i++) {
        const float low = -zero[i], high = c.max_code - zero[i], exact = w[i] / step[i];
        const float inside = exact < low ? low : exact > high ? high : exact;  // whose ends are integers
        const float code = (inside + kToInteger) - kToInteger;                 // less the zero point
        error[i] = (w[i] - code * scale[i]) / diagonal;
        const float stored = code + zero[i];
        codes[i] = static_cast<unsigned char>(static_cast<int>(stored > 0.f ? std::min(stored, 255.f) : 0.f));
    }
    std::copy(w, w + lanes, c.rows + of_column);
    std::copy(error, error + lanes, c.errors + of_column);
}

void round_columns(const Columns& c, int64_t at, int64_t lanes) {
    float w[gptq_ops::kMostColumns][kLanes], error[kLanes];
    for (int64_t column = 0; column < c.count; column++) {
        std::copy_n(c.rows + column * c.size + at, lanes, w[column]);
    }
    for (int64_t column = 0; column < c.count; column++) {
        round_column(c, column, at, lanes, w[column], error);
        for (int64_t later = column + 1; later < c.count; later++) {
            const float factor = c.factor[column * c.factor_row + later * c.factor_column];
            for (int64_t i = 0; i < lanes; i++) {
                w[later][i] -= factor * error[i];
            }
        }
    }
}

void gptq_columns(Tensor rows, Tensor errors, Tensor codes, const Tensor& factor, const Tensor& groups,
                  const Tensor& step, const Tensor& scale, const Tensor& zero, int64_t max_code) {
    gptq_ops::check(rows, errors, codes, factor, groups, step, scale, zero, max_code, kCpu);
    const auto* group_of = static_cast<const int64_t*>(groups.const_data_ptr());
    for (int64_t column = 0; column < rows.size(0); column++) {
        STD_TORCH_CHECK(0 <= group_of[column] && group_of[column] < step.size(0), "groups must be from 0 to ",
                        step.size(0) - 1, ", got ", group_of[column]);
    }
    const Columns c = {static_cast<float*>(rows.mutable_data_ptr()),
                       static_cast<float*>(errors.mutable_data_ptr()),
                       static_cast<unsigned char*>(codes.mutable_data_ptr()),
                       static_cast<const float*>(factor.const_data_ptr()),
                       static_cast<const float*>(step.const_data_ptr()),
                       static_cast<const float*>(scale.const_data_ptr()),
                       static_cast<const float*>(zero.const_data_ptr()),
                       group_of,
                       rows.size(0),
                       rows.size(1),
                       factor.stride(0),
                       factor.stride(1),
                       static_cast<float>(max_code)};
    Parallel threads = torch_threads();
    threads.threads = rows.numel() < kMinParallel ? 1 : threads.threads;
    parallel_chunks(threads, c.size, kLanes,
                    [&] { return [&](int64_t first, int64_t last) { round_columns(c, first, last - first); }; });
}

}  // namespace
}  // namespace qaig

STABLE_TORCH_LIBRARY_IMPL(qaig, CPU, m) { m.impl("gptq_columns", TORCH_BOX(&qaig::gptq_columns)); }
