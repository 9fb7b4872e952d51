"""SGLang: reads a quantized folder as it was saved, with this package's operators. It was not run on the engine.

SGLang calls [`register`] through the entry point `sglang.srt.plugins`, in every process. Nothing here imports SGLang
before that.
"""

from __future__ import annotations

from importlib import import_module


def register() -> None:
    """Adds the method `qaig` to SGLang. It may be called several times."""
    import_module(".config", __name__).register()
