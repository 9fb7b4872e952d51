"""vLLM: serves a quantized folder as it was saved, with this package's kernels.

vLLM calls [`register`] through the entry point `vllm.general_plugins`, in every process. Nothing here imports vLLM
before that.
"""

from __future__ import annotations

from importlib import import_module


def register() -> None:
    """Adds the method `qaig` and the kernels for other packed files to vLLM. It may be called several times."""
    import_module(".config", __name__)
    import_module(".linear_kernel", __name__)
