// Properties of the current device, and messages of errors: qaig_cuda_device and qaig_cuda_message of api.h. The
// emulator has its own.
#include <atomic>

#include "cuda/host/errors.h"

#if defined(__CUDACC__)
extern "C" {
int qaig_cuda_device(int* processors, int* capability) {
    constexpr int kMostDevices = 64;
    static std::atomic<long long> known[kMostDevices];  // both values in one, so that threads see both or neither
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess && device < kMostDevices) {
        const long long both = known[device].load(std::memory_order_relaxed);
        if (both != 0) {
            *processors = static_cast<int>(both >> 32), *capability = static_cast<int>(both & 0xffffffff);
            return QAIG_OK;
        }
    }
    int major = 0, minor = 0;
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(processors, cudaDevAttrMultiProcessorCount, device);
    }
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    }
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    }
    if (error != cudaSuccess) {
        return qaig::cuda::status_of(error);
    }
    *capability = 10 * major + minor;
    if (device < kMostDevices) {
        known[device].store(static_cast<long long>(*processors) << 32 | *capability, std::memory_order_relaxed);
    }
    return QAIG_OK;
}

const char* qaig_cuda_message(int status) {
    return status == QAIG_OK             ? "no error"
           : status == QAIG_BAD_ARGUMENT ? "sizes, pointers or alignments that do not fit together"
           : status == QAIG_UNSUPPORTED  ? "sizes or types for which there is no kernel"
           : status > QAIG_CUDA_ERROR    ? cudaGetErrorString(static_cast<cudaError_t>(status - QAIG_CUDA_ERROR))
                                         : "unknown";
}
}
#endif
