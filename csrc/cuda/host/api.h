// The C functions that launch the kernels of the compiled library.
#pragma once

#include "cuda/arguments.h"

// What the C functions return; above 1000 it is 1000 + a cudaError_t.
enum QaigStatus { QAIG_OK = 0, QAIG_BAD_ARGUMENT = 1, QAIG_UNSUPPORTED = 2, QAIG_CUDA_ERROR = 1000 };

// `stream` is a cudaStream_t of the current device. Sizes and alignments are checked against each other. The caller
// guarantees the size of every buffer.
extern "C" {
// Multiprocessors and compute capability (90 for 9.0) of the current device. The values are cached.
int qaig_cuda_device(int* processors, int* capability);
// Bytes of QaigMatmul.workspace, and number of its semaphores.
int qaig_cuda_gemv_workspace(const QaigMatmul* matmul, long long* workspace_bytes, long long* semaphores);
int qaig_cuda_gemm_f16_workspace(const QaigMatmul* matmul, long long* workspace_bytes, long long* semaphores);
int qaig_cuda_gemm_i8_workspace(const QaigMatmul* matmul, long long* workspace_bytes, long long* semaphores);
// `type` is that of y.
int qaig_cuda_gemv(const QaigMatmul* matmul, int type, void* stream);
int qaig_cuda_gemm_f16(const QaigMatmul* matmul, int type, void* stream);
int qaig_cuda_gemm_i8(const QaigMatmul* matmul, int type, void* stream);
// One launch for each width in the stack.
int qaig_cuda_experts(const QaigExperts* experts, int type, void* stream);
int qaig_cuda_dequantize(const QaigDequantize* dequantize, void* stream);
int qaig_cuda_quantize_activations(const QaigQuantizeActivations* quantize, int type, void* stream);
int qaig_cuda_gptq_columns(const QaigGptqColumns* columns, void* stream);
// Gives `count` semaphores for launches on `stream` of the current device: zeros, which every launch leaves as zeros.
// Gives null if none are left, or if none exist yet during graph capture. The caller then provides its own.
//
// Launches that may run at the same time share none. Each stream has its own, and each stream within a graph too,
// because a graph may be replayed beside other work of its stream. They stay valid as long as the process lives.
int qaig_cuda_semaphores(void* stream, long long count, unsigned** semaphores);
// The message of a status, in English.
const char* qaig_cuda_message(int status);
}
