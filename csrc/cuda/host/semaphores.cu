// The semaphores of gemv and gemm launches: qaig_cuda_semaphores of api.h. The emulator compiles this file too.
//
// Each device has one pool of them, which torch's allocator does not know. Torch would report memory that stays
// allocated after a graph is recorded as a leak (torch._inductor.cudagraph_trees.check_memory_pool).
#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/host/api.h"
#include "cuda/host/errors.h"

#if !defined(__CUDACC__)
#include <cstdlib>
extern "C" unsigned long long qaig_emulator_capture;
#endif

namespace qaig {
namespace cuda {
namespace {

constexpr long long kSemaphores = 1 << 20;  // of each device, for all its streams and graphs: 4 MiB
constexpr long long kMinSlice = 1024;       // of a pool

#if defined(__CUDACC__)

int current_device(int* device) { return status_of(cudaGetDevice(device)); }

// An id that all launches of one CUDA graph share while it is captured. 0 without a capture.
int capture_of(void* stream, unsigned long long* id) {
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    const cudaError_t error = cudaStreamGetCaptureInfo(static_cast<cudaStream_t>(stream), &capture, id);
    if (capture != cudaStreamCaptureStatusActive) {
        *id = 0;
    }
    return status_of(error);
}

cudaError_t zero_and_wait(void* memory, size_t bytes) {
    cudaStream_t stream = nullptr;  // of its own: the default one must not be used during a capture
    cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (error != cudaSuccess) {
        return error;
    }
    error = cudaMemsetAsync(memory, 0, bytes, stream);
    if (error == cudaSuccess) {
        error = cudaStreamSynchronize(stream);
    }
    const cudaError_t destroyed = cudaStreamDestroy(stream);
    return error == cudaSuccess ? destroyed : error;
}

// Allocates zeros, or null if the device has no memory left. Works while another thread captures a graph.
int allocate(unsigned** memory) {
    constexpr size_t kBytes = sizeof(unsigned) * kSemaphores;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaError_t error = cudaThreadExchangeStreamCaptureMode(&mode);
    if (error != cudaSuccess) {
        return status_of(error);
    }
    void* found = nullptr;
    error = cudaMalloc(&found, kBytes);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        found = nullptr, error = cudaSuccess;
    } else if (error == cudaSuccess && (error = zero_and_wait(found, kBytes)) != cudaSuccess) {
        cudaFree(found);
    }
    cudaThreadExchangeStreamCaptureMode(&mode);
    if (error == cudaSuccess) {
        *memory = static_cast<unsigned*>(found);
    }
    return status_of(error);
}

#else

int current_device(int* device) {
    *device = 0;
    return QAIG_OK;
}

int capture_of(void*, unsigned long long* id) {
    *id = qaig_emulator_capture;
    return QAIG_OK;
}

int allocate(unsigned** memory) {
    *memory = static_cast<unsigned*>(std::calloc(kSemaphores, sizeof(unsigned)));
    return QAIG_OK;
}

#endif

struct Pool {
    unsigned* begin = nullptr;
    long long used = 0;
};

struct Slice {
    unsigned* begin = nullptr;
    long long count = 0;
};

}  // namespace
}  // namespace cuda
}  // namespace qaig

using namespace qaig::cuda;

extern "C" int qaig_cuda_semaphores(void* stream, long long count, unsigned** semaphores) {
    // Never freed: a graph may be replayed as long as the process lives.
    static auto& pools = *new std::map<int, Pool>;
    static auto& slices = *new std::map<std::tuple<int, void*, unsigned long long>, Slice>;
    static auto& mutex = *new std::mutex;
    if (!semaphores || count < 1) {
        return QAIG_BAD_ARGUMENT;
    }
    *semaphores = nullptr;
    int device = 0;
    unsigned long long capture = 0;
    int status = current_device(&device);
    if (status == QAIG_OK) {
        status = capture_of(stream, &capture);
    }
    if (status != QAIG_OK) {
        return status;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    Pool& pool = pools[device];
    if (!pool.begin && capture == 0) {  // allocation is forbidden during a capture
        status = allocate(&pool.begin);
    }
    if (status != QAIG_OK || !pool.begin) {
        return status;
    }
    const auto key = std::make_tuple(device, stream, capture);
    const auto known = slices.find(key);
    if (known != slices.end() && known->second.count >= count) {
        *semaphores = known->second.begin;
        return QAIG_OK;
    }
    const long long left = kSemaphores - pool.used;
    if (count > left) {
        return QAIG_OK;
    }
    // Powers of two: slices that a growing stream abandons are together smaller than its current one.
    long long size = kMinSlice;
    while (size < count) {
        size *= 2;
    }
    size = std::min(size, left);
    *semaphores = pool.begin + pool.used;
    slices[key] = {*semaphores, size};
    pool.used += size;
    return QAIG_OK;
}
