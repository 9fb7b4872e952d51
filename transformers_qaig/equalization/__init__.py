"""Equalization: finds which scales can be folded, searches them, and folds them.

This room may import `rounding` and the rooms below it in docs/concepts/architecture.md.
"""

from .fold import Group, fold, tie
from .probe import find_groups

__all__ = ["Group", "find_groups", "fold", "tie"]
