"""Quantizes vision-language models inside Transformers, with calibration on images and text, and packed kernels.

Importing it registers the quantization method in Transformers.
"""

import sys
from functools import partial
from importlib import import_module

if sys.argv[:1] == ["-m"] and __name__ in sys.orig_argv:
    # `python -m transformers_qaig` imports this file first: --help and a wrong argument end here, in no time.
    from transformers_qaig_cli import parse

    parse()

from transformers.quantizers import register_quantization_config, register_quantizer

from transformers_qaig_autoload import when_imported

from .config import QUANT_METHOD, BitBudget, CalibrationConfig, QAIGConfig
from .config.recipes import Recipe
from .integrations.exporting.run import export
from .integrations.vision2seq import AutoModelForVision2Seq, restore_removed_name
from .nn.linear import QAIGLinear
from .quantizer import QAIGHfQuantizer
from .quantizer.saving.processor_and_card import extend_save_pretrained
from .utils.logging import get_logger
from .utils.version import __version__ as __version__

__all__ = ["AutoModelForVision2Seq", "BitBudget", "CalibrationConfig", "QAIGConfig", "QAIGLinear", "Recipe", "export"]

_logger = get_logger(__name__)

restore_removed_name()
register_quantization_config(QUANT_METHOD)(QAIGConfig)
register_quantizer(QUANT_METHOD)(QAIGHfQuantizer)
extend_save_pretrained()


def _support(library: str, module: str) -> None:
    try:
        import_module(f".integrations.{module}", __name__)  # it does nothing more if it is just being imported
    except Exception as error:  # importing the library must not fail for us
        _logger.warning("This version of %s is not supported, and does not know packed layers (%s).", library, error)


when_imported("peft", partial(_support, "PEFT", "peft.install"))
when_imported("accelerate.hooks", partial(_support, "Accelerate", "accelerate_hooks"))
