"""Channel-wise equalization: which scales can be folded (probe), and folding them (fold)."""

from .fold import Group, fold, tie
from .probe import find_groups

__all__ = ["Group", "find_groups", "fold", "tie"]
