// Finds torch's current device and stream, and raises the errors of the kernels' C functions.
#pragma once

#if !defined(QAIG_EMULATED)
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#endif

#include "cuda/host/api.h"
#include "ops/checks.h"

namespace qaig {
namespace [[gnu::visibility("hidden")]] cuda_ops {  // as torch's types are

#if defined(QAIG_EMULATED)

struct Device {
    explicit Device(const Tensor&) {}
    int index = kCpu;
    void* stream = nullptr;
};

#else

// Looks the function up at run time: a library that links to it would not load in a torch without CUDA.
inline void* current_stream(int device) {
    using Function = AOTITorchError (*)(int32_t, void**);
    static const auto function = [] {
        void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
        return reinterpret_cast<Function>(
            dlsym(library ? library : RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
    }();
    STD_TORCH_CHECK(function, "this torch has no aoti_torch_get_current_cuda_stream: is it built with CUDA?");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(function(device, &stream));
    return stream;
}

// The device of a tensor. It is the current device as long as this object lives.
struct Device {
    explicit Device(const Tensor& t) : index(t.get_device()), guard(index), stream(current_stream(index)) {}
    int index;
    torch::stable::accelerator::DeviceGuard guard;
    void* stream;
};

#endif

inline void check_status(int status, const char* what) {
    STD_TORCH_CHECK(status == QAIG_OK, what, " failed: ", qaig_cuda_message(status));
}

}  // namespace cuda_ops
}  // namespace qaig
