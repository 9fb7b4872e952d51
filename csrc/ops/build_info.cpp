// Names the architectures whose CUDA kernels the library holds, such as "80 90 120+PTX", or none.
//
// Python (transformers_qaig/kernels/extension.py) finds this text in the file, without loading the library.

#ifndef QAIG_CUDA_ARCHS
#define QAIG_CUDA_ARCHS ""
#endif

extern "C" {
extern __attribute__((visibility("default"), used)) const char qaig_cuda_architectures[];
const char qaig_cuda_architectures[] = "qaig-cuda-architectures[" QAIG_CUDA_ARCHS "]";
}
