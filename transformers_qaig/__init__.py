"""Vision-language models, quantized inside Transformers and guided by Quantization-aware Integrated Gradients."""

import logging

from transformers.quantizers import register_quantization_config, register_quantizer

from .auto import AutoModelForVision2Seq
from .config import QUANT_METHOD, QAIGConfig
from .nn.linear import QAIGLinear
from .quantizer import QAIGHfQuantizer

__version__ = "0.1.0"
__all__ = ["AutoModelForVision2Seq", "QAIGConfig", "QAIGLinear"]

_logger = logging.getLogger(__name__)
if not _logger.hasHandlers():  # an application that sets up logging decides for itself
    _logger.addHandler(logging.StreamHandler())
    _logger.setLevel(logging.INFO)

register_quantization_config(QUANT_METHOD)(QAIGConfig)
register_quantizer(QUANT_METHOD)(QAIGHfQuantizer)
