// The C functions of api.h. The emulator compiles this file too.
#include "cuda/device/intrinsics.cuh"
#include "cuda/geometry.h"
#include "cuda/host/api.h"
#include "cuda/host/errors.h"

#define QAIG_DECLARE(width)                                     \
    extern "C" {                                                \
    __global__ void qaig_decode_##width##_f16_m8(QaigDecode);   \
    __global__ void qaig_decode_##width##_f16_m16(QaigDecode);  \
    __global__ void qaig_decode_##width##_bf16_m8(QaigDecode);  \
    __global__ void qaig_decode_##width##_bf16_m16(QaigDecode); \
    }
#define QAIG_LIST(width)                                                 \
    {                                                                    \
        {qaig_decode_##width##_f16_m8, qaig_decode_##width##_f16_m16},   \
        {qaig_decode_##width##_bf16_m8, qaig_decode_##width##_bf16_m16}, \
    }

QAIG_DECLARE(w2)
QAIG_DECLARE(w3)
QAIG_DECLARE(w4)
QAIG_DECLARE(w8)
QAIG_DECLARE(mixed)
#define QAIG_DECLARE_TILED(width)                            \
    extern "C" {                                             \
    __global__ void qaig_fused_##width##_f16(QaigDecode);    \
    __global__ void qaig_fused_##width##_bf16(QaigDecode);   \
    __global__ void qaig_integer_##width##_f16(QaigDecode);  \
    __global__ void qaig_integer_##width##_bf16(QaigDecode); \
    }
#define QAIG_LIST_TILED(kernel, width) {qaig_##kernel##_##width##_f16, qaig_##kernel##_##width##_bf16}

QAIG_DECLARE_TILED(w2)
QAIG_DECLARE_TILED(w3)
QAIG_DECLARE_TILED(w4)
QAIG_DECLARE_TILED(w8)
extern "C" {
__global__ void qaig_dequantize_w2(QaigDequantize);
__global__ void qaig_dequantize_w3(QaigDequantize);
__global__ void qaig_dequantize_w4(QaigDequantize);
__global__ void qaig_dequantize_w8(QaigDequantize);
__global__ void qaig_arrange_f16(QaigArrange);
__global__ void qaig_arrange_bf16(QaigArrange);
__global__ void qaig_round_columns(QaigColumns);
}

namespace qaig {
namespace cuda {
namespace {

using DecodeKernel = void (*)(QaigDecode);
using DequantizeKernel = void (*)(QaigDequantize);

constexpr DecodeKernel kDecode[5][2][2] = {QAIG_LIST(w2), QAIG_LIST(w3), QAIG_LIST(w4), QAIG_LIST(w8),
                                           QAIG_LIST(mixed)};
constexpr DecodeKernel kFused[4][2] = {QAIG_LIST_TILED(fused, w2), QAIG_LIST_TILED(fused, w3),
                                       QAIG_LIST_TILED(fused, w4), QAIG_LIST_TILED(fused, w8)};
constexpr DecodeKernel kInteger[4][2] = {QAIG_LIST_TILED(integer, w2), QAIG_LIST_TILED(integer, w3),
                                         QAIG_LIST_TILED(integer, w4), QAIG_LIST_TILED(integer, w8)};
constexpr DequantizeKernel kDequantize[4] = {qaig_dequantize_w2, qaig_dequantize_w3, qaig_dequantize_w4,
                                             qaig_dequantize_w8};

constexpr int index_of(int bits) { return bits == 8 ? 3 : bits - 2; }
constexpr bool aligned(const void* p, unsigned long long bytes) {
    return p && reinterpret_cast<unsigned long long>(p) % bytes == 0;
}

#if defined(__CUDACC__)

template <class Argument>
int launch(void (*kernel)(Argument), const Argument& argument, int grid_x, int grid_y, int threads, int shared,
           void* stream) {
    void* arguments[] = {const_cast<Argument*>(&argument)};
    return status_of(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(grid_x, grid_y), dim3(threads),
                                      arguments, shared, static_cast<cudaStream_t>(stream)));
}

#else

template <class Argument>
int launch(void (*kernel)(Argument), const Argument& argument, int grid_x, int grid_y, int threads, int shared, void*) {
    static void (*running)(Argument);
    running = kernel;
    return emulator::launch([](const void* a) { running(*static_cast<const Argument*>(a)); }, &argument, grid_x, grid_y,
                            threads, shared);
}

#endif

bool has_sizes(int out_features, int in_features, int group_size, int bits) {
    constexpr int kMost = 1 << 28;  // so that no number of slots overflows
    return has_order(bits) && out_features >= 1 && out_features < kMost && in_features >= 1 && in_features < kMost &&
           group_size >= 1 && in_features % group_size == 0 &&
           static_cast<long long>(in_features / group_size) * ((group_size + 31) / 32) < (1 << 25);
}

// Everything but the number of rows, which kernels do not agree on.
int check_layers(const QaigDecode* d) {
    if (!d || d->layer_count < 1 || d->layer_count > QAIG_MOST_LAYERS || d->rows < 1) {
        return QAIG_BAD_ARGUMENT;
    }
    for (int i = 0; i < d->layer_count; i++) {
        const QaigLayer& l = d->layers[i];
        if (!has_sizes(l.out_features, l.in_features, l.group_size, l.bits)) {
            return QAIG_BAD_ARGUMENT;
        }
        if (l.scale_type != QAIG_F16 && l.scale_type != QAIG_BF16) {
            return QAIG_UNSUPPORTED;
        }
        if (!aligned(l.words, 16) || !aligned(l.scale, 16) || (l.zero && !aligned(l.zero, 8)) || !aligned(l.x, 16) ||
            !aligned(l.y, 2) || l.x_stride % 8 || l.x_slots % 8 || l.x_slots < 0 || l.x_slots > l.x_stride ||
            (l.bias && (l.bias_type < QAIG_F32 || l.bias_type > QAIG_BF16))) {
            return QAIG_BAD_ARGUMENT;
        }
    }
    return QAIG_OK;
}

int check_decode(const QaigDecode* d) {
    const int status = check_layers(d);
    if (status != QAIG_OK) {
        return status;
    }
    long long steps = 0;
    for (int i = 0; i < d->layer_count; i++) {
        steps += shape_of(d->layers[i]).items() * d->layers[i].bits;
    }
    return d->rows > QAIG_MOST_ROWS ? QAIG_BAD_ARGUMENT : steps >= kMostSteps ? QAIG_UNSUPPORTED : QAIG_OK;
}

long long items_of(const QaigDecode& d) {
    long long items = 0;
    for (int i = 0; i < d.layer_count; i++) {
        items += shape_of(d.layers[i]).items();
    }
    return items;
}

// Of all layers.
struct Tiled {
    long long steps, outputs;
};

Tiled tiled_of(const QaigDecode& d) {
    Tiled t = {0, 0};
    for (int i = 0; i < d.layer_count; i++) {
        const Shape s = shape_of(d.layers[i]);
        t.steps += tiled_steps(s, d.rows);
        t.outputs += tiled_outputs(s, d.rows);
    }
    return t;
}

// Of fused and of integer kernels.
int check_tiled(const QaigDecode* d, bool integers, int* processors) {
    int status = check_layers(d);
    if (status != QAIG_OK) {
        return status;
    }
    for (int i = 0; i < d->layer_count; i++) {
        const QaigLayer& l = d->layers[i];
        if (l.bits != d->layers[0].bits) {
            return QAIG_BAD_ARGUMENT;
        }
        if (integers && (!aligned(l.token_scale, 4) || l.x_slots != shape_of(l).slots() || l.x_stride % 16 ||
                         l.x_stride < 2LL * l.x_slots)) {
            return QAIG_BAD_ARGUMENT;
        }
    }
    int capability = 0;
    status = qaig_cuda_device(processors, &capability);
    if (status != QAIG_OK) {
        return status;
    }
    const bool fits = d->rows <= kMostTiledRows && tiled_of(*d).steps < kMostSteps;
    return fits && capability >= kTiledCapability ? QAIG_OK : QAIG_UNSUPPORTED;
}

int tiled_workspace(const QaigDecode* d, bool integers, long long* partial_bytes, long long* counters) {
    int processors = 0;
    const int status = check_tiled(d, integers, &processors);
    if (status != QAIG_OK) {
        return status;
    }
    const Tiled tiled = tiled_of(*d);
    *partial_bytes = tiled_partial_bytes(tiled_grid(tiled.steps, processors));
    *counters = tiled_counters(tiled.outputs);
    return QAIG_OK;
}

int launch_tiled(const QaigDecode* d, bool integers, int type, void* stream) {
    int processors = 0;
    const int status = check_tiled(d, integers, &processors);
    if (status != QAIG_OK) {
        return status;
    }
    if ((type != QAIG_F16 && type != QAIG_BF16) || !aligned(d->partials, 16) || !aligned(d->counters, 4)) {
        return QAIG_BAD_ARGUMENT;
    }
    const int bits = d->layers[0].bits;
    const DecodeKernel kernel = (integers ? kInteger : kFused)[index_of(bits)][type - QAIG_F16];
    return launch(kernel, *d, tiled_grid(tiled_of(*d).steps, processors), 1, kTiledThreads,
                  integers ? integer_shared_bytes(bits) : fused_shared_bytes(bits), stream);
}

}  // namespace
}  // namespace cuda
}  // namespace qaig

using namespace qaig::cuda;

extern "C" {

int qaig_cuda_decode_workspace(const QaigDecode* d, long long* partial_bytes, long long* counters) {
    int processors = 0, capability = 0;
    int status = check_decode(d);
    if (status == QAIG_OK) {
        status = qaig_cuda_device(&processors, &capability);
    }
    if (status != QAIG_OK) {
        return status;
    }
    *partial_bytes =
        decode_partial_bytes(decode_grid(items_of(*d), processors, decode_columns(d->rows)), decode_columns(d->rows));
    *counters = 0;
    for (int i = 0; i < d->layer_count; i++) {
        *counters += shape_of(d->layers[i]).row_blocks();
    }
    return QAIG_OK;
}

int qaig_cuda_decode(const QaigDecode* d, int type, void* stream) {
    int processors = 0, capability = 0;
    int status = check_decode(d);
    if (status == QAIG_OK &&
        ((type != QAIG_F16 && type != QAIG_BF16) || !aligned(d->partials, 16) || !aligned(d->counters, 4))) {
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
        bits = d->layers[i].bits == bits ? bits : kMixed;
    }
    const int columns = decode_columns(d->rows);
    return launch(kDecode[bits == kMixed ? 4 : index_of(bits)][type - QAIG_F16][columns / 8 - 1], *d,
                  decode_grid(items_of(*d), processors, columns), 1, kDecodeThreads, decode_shared_bytes(bits, columns),
                  stream);
}

int qaig_cuda_fused_workspace(const QaigDecode* d, long long* partial_bytes, long long* counters) {
    return tiled_workspace(d, false, partial_bytes, counters);
}

int qaig_cuda_integer_workspace(const QaigDecode* d, long long* partial_bytes, long long* counters) {
    return tiled_workspace(d, true, partial_bytes, counters);
}

int qaig_cuda_fused(const QaigDecode* d, int type, void* stream) { return launch_tiled(d, false, type, stream); }

int qaig_cuda_integer(const QaigDecode* d, int type, void* stream) { return launch_tiled(d, true, type, stream); }

int qaig_cuda_dequantize(const QaigDequantize* d, void* stream) {
    if (!d || !has_sizes(d->out_features, d->in_features, d->group_size, d->bits) || d->start < 0 ||
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

int qaig_cuda_arrange(const QaigArrange* a, int type, void* stream) {
    if (!a || a->rows < 1 || !has_sizes(1, a->in_features, a->group_size, 2) ||
        (type != QAIG_F16 && type != QAIG_BF16) || a->slots != Shape{1, a->in_features, a->group_size, 2}.slots() ||
        !aligned(a->x, a->rotation_block ? 16 : 2) || !aligned(a->out, 16)) {
        return QAIG_BAD_ARGUMENT;
    }
    if (((a->rotation_block || a->bytes) && !a->token_scale) || a->bytes < 0 || a->bytes > 1 ||
        (a->rotation_block && !has_rotation(a->rotation_block, a->in_features))) {
        return QAIG_BAD_ARGUMENT;
    }
    return launch(type == QAIG_F16 ? qaig_arrange_f16 : qaig_arrange_bf16, *a, a->rows, 1, kArrangeThreads, 0, stream);
}

int qaig_cuda_round_columns(const QaigColumns* c, void* stream) {
    if (!c || c->count < 1 || c->count > kMostColumns || c->size < 1 || c->size >= 1LL << 31 || c->group_count < 1 ||
        c->max_code < 1 || c->max_code > 255 || c->factor_row < 1 || c->factor_column < 1 || !aligned(c->groups, 8)) {
        return QAIG_BAD_ARGUMENT;
    }
    return launch(qaig_round_columns, *c, columns_grid(c->size), 1, kColumnsThreads, 0, stream);
}
}
