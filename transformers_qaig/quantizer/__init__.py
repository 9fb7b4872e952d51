"""Quantizer: the hooks that Transformers calls while it loads and saves, and what becomes of an unquantized model.

This room may import `saving` and the rooms below it in docs/concepts/architecture.md.
"""

from .hooks import QAIGHfQuantizer as QAIGHfQuantizer
