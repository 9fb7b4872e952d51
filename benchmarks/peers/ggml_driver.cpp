// y = x W^T through ggml's public interface, behind four C functions that peers/ggml.py calls.
//
// A `Driver` owns several copies of one quantized weight [N, K] and, per copy, a ready graph of one MUL_MAT over a
// shared x [M, K] (float32: ggml quantizes it to 8 bits inside). Nothing is allocated in `ggml_driver_run`.
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <cstring>
#include <vector>

namespace {

struct Driver {
    ggml_backend_t backend = nullptr;
    ggml_context* tensors = nullptr;
    std::vector<ggml_backend_buffer_t> buffers;
    std::vector<ggml_tensor*> weights;
    ggml_tensor* x = nullptr;
    ggml_context* graphs_context = nullptr;
    ggml_gallocr_t allocator = nullptr;
    std::vector<ggml_cgraph*> graphs;
    std::vector<ggml_tensor*> outputs;
};

ggml_context* make_context(size_t tensors, size_t graphs) {
    const size_t bytes = tensors * ggml_tensor_overhead() + graphs * ggml_graph_overhead_custom(8, false);
    return ggml_init({bytes, nullptr, /*no_alloc=*/true});
}

ggml_backend_buffer_type_t repack_buffer_type() {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    auto get = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
    for (auto* type = get(device); type && *type; ++type) {
        if (std::strstr(ggml_backend_buft_name(*type), "REPACK")) {
            return *type;
        }
    }
    return nullptr;
}

ggml_type find_type(const char* wanted) {
    for (int t = 0; t < GGML_TYPE_COUNT; ++t) {
        if (const char* name = ggml_type_name(ggml_type(t)); name && !std::strcmp(name, wanted)) {
            return ggml_type(t);
        }
    }
    GGML_ABORT("ggml has no type %s", wanted);
}

}  // namespace

extern "C" int64_t ggml_driver_row_size(const char* type_name, int64_t k) {
    return ggml_row_size(find_type(type_name), k);
}

// Quantizes w [rows, k] to the ggml type of that name and repeats it to n rows. Returns null if, with `repack`, ggml has
// no repacked layout for the type on this CPU. `dequantized` [rows, k] receives the weight as ggml reads it.
extern "C" Driver* ggml_driver_new(const char* type_name, bool repack, int64_t n, int64_t k, int64_t rows,
                                   const float* w, float* dequantized, int copies, int threads) {
    const ggml_type type = find_type(type_name);
    const int64_t row_size = ggml_row_size(type, k);
    std::vector<char> packed(row_size * n);
    const std::vector<float> importance(k, 1.0f);
    ggml_quantize_chunk(type, w, packed.data(), 0, rows, k, importance.data());
    for (int64_t i = 0; i < rows; ++i) {
        ggml_get_type_traits(type)->to_float(packed.data() + i * row_size, dequantized + i * k, k);
    }
    for (int64_t i = rows; i < n; ++i) {
        std::memcpy(packed.data() + i * row_size, packed.data() + (i - rows) * row_size, row_size);
    }

    auto* d = new Driver;
    d->backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(d->backend, threads);
    ggml_backend_buffer_type_t buffer_type = repack ? repack_buffer_type() : ggml_backend_cpu_buffer_type();
    if (!buffer_type) {
        return nullptr;
    }
    d->tensors = make_context(copies + 1, 0);
    for (int i = 0; i < copies; ++i) {
        ggml_tensor* weight = ggml_new_tensor_2d(d->tensors, type, k, n);
        const size_t bytes = ggml_backend_buft_get_alloc_size(buffer_type, weight);
        ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(buffer_type, bytes);
        ggml_backend_tensor_alloc(buffer, weight, ggml_backend_buffer_get_base(buffer));
        if (repack && !weight->extra) {
            return nullptr;  // set by the buffer only where it has a layout for the type
        }
        ggml_backend_tensor_set(weight, packed.data(), 0, packed.size());
        d->buffers.push_back(buffer);
        d->weights.push_back(weight);
    }
    return d;
}

// Makes the graphs for x [m, k], replacing earlier ones.
extern "C" void ggml_driver_prepare(Driver* d, int64_t m, const float* x) {
    const int copies = int(d->weights.size());
    if (d->graphs_context) {
        ggml_gallocr_free(d->allocator);
        ggml_backend_buffer_free(d->x->buffer);
        ggml_free(d->graphs_context);
    }
    d->graphs.clear();
    d->outputs.clear();
    d->graphs_context = make_context(copies + 1, copies);
    d->x = ggml_new_tensor_2d(d->graphs_context, GGML_TYPE_F32, d->weights[0]->ne[0], m);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_buffer(d->backend, ggml_nbytes(d->x));
    ggml_backend_tensor_alloc(buffer, d->x, ggml_backend_buffer_get_base(buffer));
    ggml_backend_tensor_set(d->x, x, 0, ggml_nbytes(d->x));
    d->allocator = ggml_gallocr_new(ggml_backend_get_default_buffer_type(d->backend));
    for (ggml_tensor* weight : d->weights) {
        ggml_cgraph* graph = ggml_new_graph_custom(d->graphs_context, 8, false);
        ggml_tensor* y = ggml_mul_mat(d->graphs_context, weight, d->x);
        ggml_build_forward_expand(graph, y);
        ggml_gallocr_alloc_graph(d->allocator, graph);  // every graph's y in the same memory
        d->graphs.push_back(graph);
        d->outputs.push_back(y);
    }
}

extern "C" void ggml_driver_run(Driver* d, int copy) { ggml_backend_graph_compute(d->backend, d->graphs[copy]); }

extern "C" void ggml_driver_output(Driver* d, int copy, float* y) {
    ggml_backend_tensor_get(d->outputs[copy], y, 0, ggml_nbytes(d->outputs[copy]));
}

extern "C" void ggml_driver_free(Driver* d) {
    if (d->graphs_context) {
        ggml_gallocr_free(d->allocator);
        ggml_backend_buffer_free(d->x->buffer);
        ggml_free(d->graphs_context);
    }
    for (ggml_backend_buffer_t buffer : d->buffers) {
        ggml_backend_buffer_free(buffer);
    }
    ggml_free(d->tensors);
    ggml_backend_free(d->backend);
    delete d;
}
