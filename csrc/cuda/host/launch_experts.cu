// Launches the kernels of experts: qaig_cuda_experts of api.h. The emulator compiles this file too.
#include "cuda/device/intrinsics.cuh"
#include "cuda/geometry.h"
#include "cuda/host/api.h"
#include "cuda/host/launch.h"
#include "cuda/host/validate.h"

#define QAIG_DECLARE_EXPERTS(width)                                    \
    extern "C" {                                                       \
    __global__ void qaig_experts_gemv_##width##_f16_m8(QaigExperts);   \
    __global__ void qaig_experts_gemv_##width##_f16_m16(QaigExperts);  \
    __global__ void qaig_experts_gemv_##width##_bf16_m8(QaigExperts);  \
    __global__ void qaig_experts_gemv_##width##_bf16_m16(QaigExperts); \
    __global__ void qaig_experts_gemm_##width##_f16(QaigExperts);      \
    __global__ void qaig_experts_gemm_##width##_bf16(QaigExperts);     \
    }
#define QAIG_LIST_EXPERTS(width)                                                                                       \
    {                                                                                                                  \
        {qaig_experts_gemv_##width##_f16_m8, qaig_experts_gemv_##width##_f16_m16, qaig_experts_gemm_##width##_f16},    \
        {qaig_experts_gemv_##width##_bf16_m8, qaig_experts_gemv_##width##_bf16_m16, qaig_experts_gemm_##width##_bf16}, \
    }

QAIG_DECLARE_EXPERTS(w2)
QAIG_DECLARE_EXPERTS(w3)
QAIG_DECLARE_EXPERTS(w4)
QAIG_DECLARE_EXPERTS(w8)

namespace qaig {
namespace cuda {
namespace {

using ExpertsFunction = void (*)(QaigExperts);

constexpr int kWidths[] = {2, 3, 4, 8};
constexpr ExpertsFunction kExperts[4][2][3] = {QAIG_LIST_EXPERTS(w2), QAIG_LIST_EXPERTS(w3), QAIG_LIST_EXPERTS(w4),
                                               QAIG_LIST_EXPERTS(w8)};

int check_experts(const QaigExperts* d) {
    if (!d || d->experts < 1 || d->experts > QAIG_MAX_EXPERTS || d->rows < 1 ||
        !valid_sizes(d->out_features, d->in_features, d->group_size, d->bits[0])) {
        return QAIG_BAD_ARGUMENT;
    }
    for (int e = 0; e < d->experts; e++) {
        if (!has_cuda_layout(d->bits[e])) {
            return QAIG_BAD_ARGUMENT;
        }
    }
    if (d->scale_type != QAIG_F16 && d->scale_type != QAIG_BF16) {
        return QAIG_UNSUPPORTED;
    }
    const Shape s = {d->out_features, d->in_features, d->group_size, d->bits[0]};
    if (d->rows > kMaxGemmRows || s.row_blocks() > kMaxGridY || s.work_items() >= kMaxSteps) {
        return QAIG_UNSUPPORTED;
    }
    return valid_tensors(*d) && aligned(d->offsets, 4) ? QAIG_OK : QAIG_BAD_ARGUMENT;
}

}  // namespace
}  // namespace cuda
}  // namespace qaig

using namespace qaig::cuda;

extern "C" int qaig_cuda_experts(const QaigExperts* d, int type, void* stream) {
    int processors = 0, capability = 0;
    int status = check_experts(d);
    if (status == QAIG_OK && !valid_type(type)) {
        status = QAIG_BAD_ARGUMENT;
    }
    if (status == QAIG_OK) {
        status = qaig_cuda_device(&processors, &capability);
    }
    if (status != QAIG_OK) {
        return status;
    }
    const int columns = experts_columns(d->rows, d->experts, capability);
    const bool by_gemm = columns == kGemmColumns;
    for (int i = 0; i < 4 && status == QAIG_OK; i++) {  // one launch for each width in the stack
        const int bits = kWidths[i];
        bool used = false;
        for (int e = 0; e < d->experts; e++) {
            used = used || d->bits[e] == bits;
        }
        if (!used) {
            continue;
        }
        const int row_tiles = experts_row_tiles({d->out_features, d->in_features, d->group_size, bits}, columns);
        const int per_processor = by_gemm ? kGemmBlocksPerProcessor : gemv_blocks_per_processor(columns);
        const int column_tiles = experts_column_tiles(d->rows, d->experts, columns);
        const int at_once = (processors * per_processor + row_tiles - 1) / row_tiles;
        status = launch(kExperts[i][type - QAIG_F16][by_gemm ? 2 : columns / 8 - 1], *d,
                        column_tiles < at_once ? column_tiles : at_once, row_tiles, kGemvThreads,
                        by_gemm ? gemm_f16_shared_bytes(bits) : gemv_shared_bytes(bits, columns), stream);
    }
    return status;
}
