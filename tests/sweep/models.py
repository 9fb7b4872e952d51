"""Tiny models of every class, made from the classes' own default configurations."""

from typing import Any

import torch
import transformers as hf
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests import unusual
from tests.sweep.families import SAMPLES, VALUES
from tests.sweep.sizes import shrunk
from tests.tiny_models.unusual_parts import Samples, texts
from tests.tiny_models.weights import randomise

LARGEST = 40_000_000
WITH_PICTURES = tuple(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
TEXT_ONLY = (
    "llama",
    "qwen3",
    "gemma3_text",
    "phi3",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
    "deepseek_v3",
    "granitemoe",
    "nemotron_h",
    "llama4_text",
    "glm4_moe",
    "longcat_flash",
)
"""The main text models, some of which have experts."""
FROM_UNUSUAL = {
    "blip-2": "blip_2_opt",
    "florence2": "florence_2",
    "idefics": "idefics",
    "pix2struct": "pix2struct",
    "pp_formulanet": "formula_net",
    "t5gemma2": "t5_gemma_2",
    "udop": "udop",
    "vision-encoder-decoder": "vision_encoder_decoder",
}


def class_of(family: str) -> Any:
    """Returns the class that is tried for a family.

    Raises:
        KeyError: Transformers has no such family.
    """
    names = auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    found = names[family] if family in names else auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]
    return getattr(hf, found if isinstance(found, str) else found[0])


def tiny(family: str) -> tuple[Any, Samples]:
    """Builds the tiny model of a family, with samples.

    Raises:
        Exception: whatever the family's own code raises; MemoryError if the sizes that have other names are too large.
    """
    if family in FROM_UNUSUAL:
        return unusual.UNUSUAL[FROM_UNUSUAL[family]]()
    cls, values = class_of(family), shrunk(CONFIG_MAPPING[family]().to_dict())
    for path, value in VALUES.get(family, {}).items():
        *parents, name = path.split(".")
        place = values
        for parent in parents:
            place = place[parent]
        place[name] = value
    config = CONFIG_MAPPING[family](**values)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in cls(config).parameters())
    if size > LARGEST:
        raise MemoryError(f"{size:,} weights: some size has a name that is not shrunk")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(config).eval()
        samples = SAMPLES.get(family, lambda: texts(first_id=70))()
    randomise(model, 0)
    return model, samples
