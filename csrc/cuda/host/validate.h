// Checks a launch's arguments: sizes, types and alignments.
#pragma once

#include "cuda/geometry.h"
#include "cuda/host/api.h"

namespace qaig {
namespace cuda {

inline bool aligned(const void* p, unsigned long long bytes) {
    return p && reinterpret_cast<unsigned long long>(p) % bytes == 0;
}

inline bool valid_sizes(int out_features, int in_features, int group_size, int bits) {
    constexpr int kMax = 1 << 28;  // no number of slots overflows
    return has_cuda_layout(bits) && out_features >= 1 && out_features < kMax && in_features >= 1 &&
           in_features < kMax && group_size >= 1 && in_features % group_size == 0 &&
           static_cast<long long>(in_features / group_size) * ((group_size + 31) / 32) < (1 << 25);
}

// Whether y has a type for which there are kernels.
inline bool valid_type(int type) { return type == QAIG_F16 || type == QAIG_BF16; }

// Whether the kernels can read and write the tensors of a QaigLayer or QaigExperts.
template <class T>
bool valid_tensors(const T& l) {
    return aligned(l.words, 16) && aligned(l.scale, 16) && (!l.zero || aligned(l.zero, 8)) && aligned(l.x, 16) &&
           aligned(l.y, 2) && l.x_stride % 8 == 0 && l.x_slots % 8 == 0 && l.x_slots >= 0 && l.x_slots <= l.x_stride;
}

// Checks everything except the largest number of rows, which depends on the kernel.
inline int check_layers(const QaigMatmul* d) {
    if (!d || d->layer_count < 1 || d->layer_count > QAIG_MAX_LAYERS || d->rows < 1) {
        return QAIG_BAD_ARGUMENT;
    }
    for (int i = 0; i < d->layer_count; i++) {
        const QaigLayer& l = d->layers[i];
        if (!valid_sizes(l.out_features, l.in_features, l.group_size, l.bits)) {
            return QAIG_BAD_ARGUMENT;
        }
        if (l.scale_type != QAIG_F16 && l.scale_type != QAIG_BF16) {
            return QAIG_UNSUPPORTED;
        }
        if (!valid_tensors(l) || (l.bias && (l.bias_type < QAIG_F32 || l.bias_type > QAIG_BF16))) {
            return QAIG_BAD_ARGUMENT;
        }
    }
    return QAIG_OK;
}

inline int check_gemv(const QaigMatmul* d) {
    const int status = check_layers(d);
    if (status != QAIG_OK) {
        return status;
    }
    long long steps = 0;
    for (int i = 0; i < d->layer_count; i++) {
        steps += shape_of(d->layers[i]).work_items() * d->layers[i].bits;
    }
    return d->rows > QAIG_MAX_GEMV_ROWS ? QAIG_BAD_ARGUMENT : steps >= kMaxSteps ? QAIG_UNSUPPORTED : QAIG_OK;
}

}  // namespace cuda
}  // namespace qaig
