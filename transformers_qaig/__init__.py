"""Vision-language models, quantized inside Transformers and guided by Quantization-aware Integrated Gradients."""

from transformers.quantizers import register_quantization_config, register_quantizer

from .auto import AutoModelForVision2Seq
from .config import QUANT_METHOD, QAIGConfig
from .nn.linear import QAIGLinear
from .quantizer import QAIGHfQuantizer

__version__ = "0.1.0"
__all__ = ["AutoModelForVision2Seq", "QAIGConfig", "QAIGLinear"]

register_quantization_config(QUANT_METHOD)(QAIGConfig)
register_quantizer(QUANT_METHOD)(QAIGHfQuantizer)
