"""Kernels: finds, compiles and loads native code, and launches it on CUDA.

This room may import `formats` and `utils`.
"""
