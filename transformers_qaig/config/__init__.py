"""Configuration: `QAIGConfig`, `BitBudget`, `CalibrationConfig`, recipes; their checks, config.json, older spellings.

This room may import the rooms below it in docs/concepts/architecture.md.
"""

from .budget import CANDIDATES, COSTS, DEFAULT_COST, BitBudget
from .calibration import CalibrationConfig
from .file_format import FORMAT_VERSION, QUANT_METHOD
from .qaig_config import QAIGConfig

__all__ = [
    "CANDIDATES",
    "COSTS",
    "DEFAULT_COST",
    "FORMAT_VERSION",
    "QUANT_METHOD",
    "BitBudget",
    "CalibrationConfig",
    "QAIGConfig",
]
