// The C functions that launch the kernels of the compiled library.
#pragma once

#include "cuda/arguments.h"

// What the C functions return; above 1000 it is 1000 + a cudaError_t.
enum QaigStatus { QAIG_OK = 0, QAIG_BAD_ARGUMENT = 1, QAIG_UNSUPPORTED = 2, QAIG_CUDA_ERROR = 1000 };

// The compiled library's launcher. `stream` is a cudaStream_t of the current device. Sizes and alignments are checked
// against each other; that pointers reach as far as the sizes say is the caller's word.
extern "C" {
// Multiprocessors and compute capability (90 for 9.0) of the current device; asked once for each device.
int qaig_cuda_device(int* processors, int* capability);
// Bytes of QaigDecode.partials, and number of its counters, for the decode, the fused and the integer kernels.
int qaig_cuda_decode_workspace(const QaigDecode* decode, long long* partial_bytes, long long* counters);
int qaig_cuda_fused_workspace(const QaigDecode* fused, long long* partial_bytes, long long* counters);
int qaig_cuda_integer_workspace(const QaigDecode* integer, long long* partial_bytes, long long* counters);
int qaig_cuda_decode(const QaigDecode* decode, int type, void* stream);
int qaig_cuda_fused(const QaigDecode* fused, int type, void* stream);
int qaig_cuda_integer(const QaigDecode* integer, int type, void* stream);  // the type of y
int qaig_cuda_dequantize(const QaigDequantize* dequantize, void* stream);
int qaig_cuda_arrange(const QaigArrange* arrange, int type, void* stream);
int qaig_cuda_round_columns(const QaigColumns* columns, void* stream);
// `count` zeros that every launch leaves as zeros, for launches on `stream` of the current device; null if there are no
// more, or not yet and the stream is captured in a CUDA graph: the caller then brings its own. Launches that may run at
// the same time share none: each stream has its own and, as a graph may be replayed beside other work of the stream it
// was captured on, each stream within a graph. They stay valid as long as the process lives.
int qaig_cuda_counters(void* stream, long long count, unsigned** counters);
// What a status means, in English.
const char* qaig_cuda_message(int status);
}
