"""AutoModelForVision2Seq: the name Transformers v5 dropped, put back."""

import sys

import transformers
from transformers import AutoModelForImageTextToText, processing_utils  # noqa: F401
from transformers.models.auto import modeling_auto


class AutoModelForVision2Seq(AutoModelForImageTextToText):
    """The former name of [`~transformers.AutoModelForImageTextToText`]."""


# `from transformers import AutoModelForVision2Seq` then works too, as in scripts written for v4. Importing
# processing_utils runs Transformers' __init__ a second time, so there are two modules of that name: whoever imported
# the first one still holds it.
for module in (transformers, sys.modules["transformers"], modeling_auto):
    setattr(module, "AutoModelForVision2Seq", AutoModelForVision2Seq)  # noqa: B010
