"""Quantized models in the formats of other libraries: compressed-tensors, MLX, GGUF, AWQ, GPTQ.

Each format is one file. No weight is quantized again: what a format cannot hold is refused before anything is written.
"""
