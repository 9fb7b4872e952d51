"""Quantizes vision-language models inside Transformers, with calibration on images and text, and packed kernels.

Importing it registers the quantization method in Transformers.
"""

import sys
from importlib import import_module

if sys.argv[:1] == ["-m"] and __name__ in sys.orig_argv:
    # `python -m transformers_qaig` imports this file first: --help and a wrong argument end here, in no time.
    from transformers_qaig_cli import parse

    parse()

from transformers.quantizers import register_quantization_config, register_quantizer

from .auto import AutoModelForVision2Seq, restore_removed_name
from .config import QUANT_METHOD, BitBudget, CalibrationConfig, QAIGConfig
from .integrations.when_imported import when_imported
from .nn.linear import QAIGLinear
from .quantizer import QAIGHfQuantizer
from .recipes import Recipe
from .saving.processor_and_card import extend_save_pretrained
from .utils.logging import get_logger
from .utils.version import __version__ as __version__

__all__ = ["AutoModelForVision2Seq", "BitBudget", "CalibrationConfig", "QAIGConfig", "QAIGLinear", "Recipe"]

_logger = get_logger(__name__)

restore_removed_name()
register_quantization_config(QUANT_METHOD)(QAIGConfig)
register_quantizer(QUANT_METHOD)(QAIGHfQuantizer)
extend_save_pretrained()


def _support_peft() -> None:
    try:
        import_module(".integrations.peft_lora", __name__)  # it does nothing more if it is just being imported
    except (ImportError, AttributeError) as error:  # `import peft` must not fail for us
        _logger.warning("This version of PEFT is not supported: its adapters leave packed layers out (%s).", error)


when_imported("peft.tuners.lora.model", _support_peft)
