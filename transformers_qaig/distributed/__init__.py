"""Several processes that quantize one model together: `Ranks` that talk, and sums in the order of the samples.

This room may import `utils`.
"""

from .ranks import ALONE, Ranks
from .terms import Terms

__all__ = ["ALONE", "Ranks", "Terms"]
