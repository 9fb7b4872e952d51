"""The CUDA kernels of `csrc/cuda` without a compiler: NVRTC makes cubins of them, Python launches these.

Nothing here imports cuda-python before it is needed: when a CUDA tensor meets a packed layer and the compiled library
has no CUDA kernels for that GPU.
"""
