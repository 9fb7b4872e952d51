"""AutoModelForVision2Seq: the name Transformers v5 dropped, put back."""

import transformers
from transformers import AutoModelForImageTextToText
from transformers.models.auto import modeling_auto

if hasattr(transformers, "AutoModelForVision2Seq"):
    AutoModelForVision2Seq = transformers.AutoModelForVision2Seq
else:

    class AutoModelForVision2Seq(AutoModelForImageTextToText):
        """The former name of [`~transformers.AutoModelForImageTextToText`]."""

    # `from transformers import AutoModelForVision2Seq` then works too, as scripts written for v4 do.
    transformers.AutoModelForVision2Seq = AutoModelForVision2Seq
    modeling_auto.AutoModelForVision2Seq = AutoModelForVision2Seq
