"""Restores `AutoModelForVision2Seq`, the name that Transformers 5 removed."""

import sys

import transformers
from transformers import AutoModelForImageTextToText, processing_utils  # noqa: F401
from transformers.models.auto import modeling_auto

NAME = "AutoModelForVision2Seq"
# Importing processing_utils runs the `__init__` of Transformers a second time. There are two modules of that name then,
# and a module that imported the first still holds it.
_MODULES = (transformers, sys.modules["transformers"], modeling_auto)


class AutoModelForVision2Seq(AutoModelForImageTextToText):
    """The former name of `transformers.AutoModelForImageTextToText`, with the same `from_pretrained`.

    Transformers 5.0 removed it. Scripts written for version 4 import it from `transformers`. So importing
    `transformers_qaig` adds it there, unless Transformers has a class of that name. No other name changes. New code
    does not need it.
    """


def restore_removed_name() -> None:
    """Makes `from transformers import AutoModelForVision2Seq` work, if it does not."""
    for module in _MODULES:
        if not hasattr(module, NAME):
            setattr(module, NAME, AutoModelForVision2Seq)
