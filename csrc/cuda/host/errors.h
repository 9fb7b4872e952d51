// Converts errors of the CUDA runtime to a QaigStatus.
#pragma once

#include "cuda/host/api.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>

namespace qaig {
namespace cuda {

inline int status_of(cudaError_t error) {
    if (error == cudaSuccess) {
        return QAIG_OK;
    }
    cudaGetLastError();  // clears the error: it is reported here, so the next caller must not see it
    return QAIG_CUDA_ERROR + static_cast<int>(error);
}

}  // namespace cuda
}  // namespace qaig

#endif
