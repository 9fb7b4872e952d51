// Tells Python (transformers_qaig/kernels/cuda/__init__.py) whether the CUDA runtime inside the library works here.
#if defined(QAIG_CUDA_ARCHS)

#include "cuda/host/api.h"

// Returns why it does not work, or null. Initializes the current device.
extern "C" __attribute__((visibility("default"))) const char* qaig_cuda_error() {
    int processors = 0, capability = 0;
    const int status = qaig_cuda_device(&processors, &capability);
    return status == QAIG_OK ? nullptr : qaig_cuda_message(status);
}

#endif
