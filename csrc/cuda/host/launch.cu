// Launches kernels: the C functions of api.h, except for experts. The emulator compiles this file too.
#include "cuda/geometry.h"
#include "cuda/host/api.h"
#include "cuda/host/kernel_table.h"
#include "cuda/host/launch.h"
#include "cuda/host/validate.h"

namespace qaig {
namespace cuda {
namespace {

long long work_items_of(const QaigMatmul& d) {
    long long items = 0;
    for (int i = 0; i < d.layer_count; i++) {
        items += shape_of(d.layers[i]).work_items();
    }
    return items;
}

// The k-steps and output tiles of all layers.
struct GemmWork {
    long long steps, output_tiles;
};

GemmWork gemm_work(const QaigMatmul& d) {
    GemmWork t = {0, 0};
    for (int i = 0; i < d.layer_count; i++) {
        const Shape s = shape_of(d.layers[i]);
        t.steps += gemm_k_steps(s, d.rows);
        t.output_tiles += gemm_output_tiles(s, d.rows);
    }
    return t;
}

// Checks the arguments of both gemm kernels.
int check_gemm(const QaigMatmul* d, bool i8, int* processors) {
    int status = check_layers(d);
    if (status != QAIG_OK) {
        return status;
    }
    for (int i = 0; i < d->layer_count; i++) {
        const QaigLayer& l = d->layers[i];
        if (l.bits != d->layers[0].bits) {
            return QAIG_BAD_ARGUMENT;
        }
        if (i8 && (!aligned(l.token_scale, 4) || l.x_slots != shape_of(l).slots() || l.x_stride % 16 ||
                   l.x_stride < 2LL * l.x_slots)) {
            return QAIG_BAD_ARGUMENT;
        }
    }
    int capability = 0;
    status = qaig_cuda_device(processors, &capability);
    if (status != QAIG_OK) {
        return status;
    }
    const bool fits = d->rows <= kMaxGemmRows && gemm_work(*d).steps < kMaxSteps;
    return fits && capability >= kGemmCapability ? QAIG_OK : QAIG_UNSUPPORTED;
}

int gemm_workspace(const QaigMatmul* d, bool i8, long long* workspace_bytes, long long* semaphores) {
    int processors = 0;
    const int status = check_gemm(d, i8, &processors);
    if (status != QAIG_OK) {
        return status;
    }
    const GemmWork work = gemm_work(*d);
    *workspace_bytes = gemm_workspace_bytes(gemm_grid(work.steps, processors));
    *semaphores = gemm_semaphores(work.output_tiles);
    return QAIG_OK;
}

int launch_gemm(const QaigMatmul* d, bool i8, int type, void* stream) {
    int processors = 0;
    const int status = check_gemm(d, i8, &processors);
    if (status != QAIG_OK) {
        return status;
    }
    if (!valid_type(type) || !aligned(d->workspace, 16) || !aligned(d->semaphores, 4)) {
        return QAIG_BAD_ARGUMENT;
    }
    const int bits = d->layers[0].bits;
    const MatmulFunction kernel = (i8 ? kGemmI8 : kGemmF16)[index_of(bits)][type - QAIG_F16];
    return launch(kernel, *d, gemm_grid(gemm_work(*d).steps, processors), 1, kGemmThreads,
                  i8 ? gemm_i8_shared_bytes(bits) : gemm_f16_shared_bytes(bits), stream);
}

}  // namespace
}  // namespace cuda
}  // namespace qaig

using namespace qaig::cuda;

extern "C" {

int qaig_cuda_gemv_workspace(const QaigMatmul* d, long long* workspace_bytes, long long* semaphores) {
    int processors = 0, capability = 0;
    int status = check_gemv(d);
    if (status == QAIG_OK) {
        status = qaig_cuda_device(&processors, &capability);
    }
    if (status != QAIG_OK) {
        return status;
    }
    *workspace_bytes =
        gemv_workspace_bytes(gemv_grid(work_items_of(*d), processors, gemv_columns(d->rows)), gemv_columns(d->rows));
    *semaphores = 0;
    for (int i = 0; i < d->layer_count; i++) {
        *semaphores += shape_of(d->layers[i]).row_blocks();
    }
    return QAIG_OK;
}

int qaig_cuda_gemv(const QaigMatmul* d, int type, void* stream) {
    int processors = 0, capability = 0;
    int status = check_gemv(d);
    if (status == QAIG_OK && (!valid_type(type) || !aligned(d->workspace, 16) || !aligned(d->semaphores, 4))) {
        status = QAIG_BAD_ARGUMENT;
    }
    if (status == QAIG_OK) {
        status = qaig_cuda_device(&processors, &capability);
    }
    if (status != QAIG_OK) {
        return status;
    }
    int bits = d->layers[0].bits;
    for (int i = 1; i < d->layer_count; i++) {
        bits = d->layers[i].bits == bits ? bits : kMixedBits;
    }
    const int columns = gemv_columns(d->rows);
    return launch(kGemv[bits == kMixedBits ? 4 : index_of(bits)][type - QAIG_F16][columns / 8 - 1], *d,
                  gemv_grid(work_items_of(*d), processors, columns), 1, kGemvThreads, gemv_shared_bytes(bits, columns),
                  stream);
}

int qaig_cuda_gemm_f16_workspace(const QaigMatmul* d, long long* workspace_bytes, long long* semaphores) {
    return gemm_workspace(d, false, workspace_bytes, semaphores);
}

int qaig_cuda_gemm_i8_workspace(const QaigMatmul* d, long long* workspace_bytes, long long* semaphores) {
    return gemm_workspace(d, true, workspace_bytes, semaphores);
}

int qaig_cuda_gemm_f16(const QaigMatmul* d, int type, void* stream) { return launch_gemm(d, false, type, stream); }

int qaig_cuda_gemm_i8(const QaigMatmul* d, int type, void* stream) { return launch_gemm(d, true, type, stream); }

int qaig_cuda_dequantize(const QaigDequantize* d, void* stream) {
    if (!d || !valid_sizes(d->out_features, d->in_features, d->group_size, d->bits) || d->start < 0 ||
        d->start > d->stop || d->stop > d->out_features || d->scale_type < QAIG_F32 || d->scale_type > QAIG_BF16 ||
        d->type < QAIG_F32 || d->type > QAIG_BF16 || !aligned(d->words, 16) || !aligned(d->scale, 2)) {
        return QAIG_BAD_ARGUMENT;
    }
    if (d->start == d->stop) {
        return QAIG_OK;
    }
    if (!aligned(d->out, 16)) {
        return QAIG_BAD_ARGUMENT;
    }
    const Shape s = {d->out_features, d->in_features, d->group_size, d->bits};
    const long long row_bytes = static_cast<long long>(d->in_features) * (d->type == QAIG_F32 ? 4 : 2);
    QaigDequantize part = *d;
    int status = QAIG_OK;
    for (; part.start < d->stop && status == QAIG_OK; part.start = part.stop) {
        part.stop = dequantize_stop(part.start, d->stop);
        part.out = static_cast<char*>(d->out) + (part.start - d->start) * row_bytes;
        status = launch(kDequantize[index_of(d->bits)], part, dequantize_grid_x(s),
                        dequantize_grid_y(part.start, part.stop), kDequantizeThreads, 0, stream);
    }
    return status;
}

int qaig_cuda_quantize_activations(const QaigQuantizeActivations* a, int type, void* stream) {
    if (!a || a->rows < 1 || !valid_sizes(1, a->in_features, a->group_size, 2) || !valid_type(type) ||
        a->slots != Shape{1, a->in_features, a->group_size, 2}.slots() || !aligned(a->x, a->rotation_block ? 16 : 2) ||
        !aligned(a->out, 16)) {
        return QAIG_BAD_ARGUMENT;
    }
    if (((a->rotation_block || a->bytes) && !a->token_scale) || a->bytes < 0 || a->bytes > 1 ||
        (a->rotation_block && !has_rotation(a->rotation_block, a->in_features))) {
        return QAIG_BAD_ARGUMENT;
    }
    return launch(type == QAIG_F16 ? qaig_quantize_activations_f16 : qaig_quantize_activations_bf16, *a, a->rows, 1,
                  kQuantizeThreads, 0, stream);
}

int qaig_cuda_gptq_columns(const QaigGptqColumns* c, void* stream) {
    if (!c || c->count < 1 || c->count > kMaxGptqColumns || c->size < 1 || c->size >= 1LL << 31 || c->group_count < 1 ||
        c->max_code < 1 || c->max_code > 255 || c->factor_row < 1 || c->factor_column < 1 || !aligned(c->groups, 8)) {
        return QAIG_BAD_ARGUMENT;
    }
    return launch(qaig_gptq_columns, *c, gptq_columns_grid(c->size), 1, kGptqThreads, 0, stream);
}
}
