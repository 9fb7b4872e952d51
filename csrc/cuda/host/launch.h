// Launches one kernel, on a device or on the emulator.
#pragma once

#include "cuda/host/errors.h"

namespace qaig {
namespace cuda {
namespace {

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

}  // namespace
}  // namespace cuda
}  // namespace qaig
