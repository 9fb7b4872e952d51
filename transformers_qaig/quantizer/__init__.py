"""Quantizer: the hooks that Transformers calls while it loads and saves, and what becomes of an unquantized model.

This room may import `calibration` and the rooms below it in docs/concepts/architecture.md.
"""

from .hooks import QAIGHfQuantizer as QAIGHfQuantizer
