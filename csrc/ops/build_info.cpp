// What the library was built with, where Python finds it without loading the library (transformers_qaig/kernels/extension.py):
// the architectures whose CUDA kernels are inside, such as "80 90 120+PTX", or none.

#ifndef QAIG_CUDA_ARCHS
#define QAIG_CUDA_ARCHS ""
#endif

extern "C" {
extern __attribute__((visibility("default"), used)) const char qaig_cuda_architectures[];
const char qaig_cuda_architectures[] = "qaig-cuda-architectures[" QAIG_CUDA_ARCHS "]";
}
