"""`QAIGConfig`: how to quantize a model, and how it was quantized."""

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
