// What the library was built with, read by Python (transformers_qaig/extension.py).

#ifndef QAIG_CUDA_ARCHS
#define QAIG_CUDA_ARCHS ""
#endif

// Architectures whose CUDA kernels are inside, such as "80 90 120+PTX"; empty if there are none.
extern "C" __attribute__((visibility("default"))) const char* qaig_cuda_architectures() { return QAIG_CUDA_ARCHS; }
