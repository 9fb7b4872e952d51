"""AutoModelForVision2Seq: the name Transformers v5 dropped, put back."""

import transformers
from transformers import AutoModelForImageTextToText
from transformers.models.auto import modeling_auto


class AutoModelForVision2Seq(AutoModelForImageTextToText):
    """The former name of [`~transformers.AutoModelForImageTextToText`]."""


# `from transformers import AutoModelForVision2Seq` then works too, as in scripts written for v4.
for module in (transformers, modeling_auto):
    setattr(module, "AutoModelForVision2Seq", AutoModelForVision2Seq)  # noqa: B010
