"""Tiny models whose parts lie elsewhere than in most: encoder-decoders, several lists of blocks, inputs of other ranks.

Each function returns a model with random weights and samples as a processor would give them; nothing needs a processor.
"""

from collections.abc import Callable
from typing import Any

from tests.tiny_models.encoder_decoders import (
    blip_2_t5,
    florence_2,
    formula_net,
    pix2struct,
    t5_gemma_2,
    udop,
    vision_encoder_decoder,
)
from tests.tiny_models.unusual_decoders import blip_2_opt, deepseek_v3, gemma_3n, gemma_4, idefics
from tests.tiny_models.unusual_parts import Samples

ENCODER_DECODERS: dict[str, Callable[[], tuple[Any, Samples]]] = {
    "blip_2_t5": blip_2_t5,
    "vision_encoder_decoder": vision_encoder_decoder,
    "pix2struct": pix2struct,
    "formula_net": formula_net,
    "udop": udop,
    "florence_2": florence_2,
    "t5_gemma_2": t5_gemma_2,
}
UNUSUAL = ENCODER_DECODERS | {
    "idefics": idefics,
    "blip_2_opt": blip_2_opt,
    "gemma_3n": gemma_3n,
    "deepseek_v3": deepseek_v3,
    "gemma_4": gemma_4,
}
