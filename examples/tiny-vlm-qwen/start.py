"""Makes the untrained tiny Qwen2.5-VL and its processor: a new tower, and the tiny VLM's language model and words."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForImageTextToText,
    PaddleOCRVLProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

LLAVA = Path(__file__).parents[1] / "tiny-vlm" / "model"
PATCH, MERGE, FRAMES = 6, 2, 2
"""Pixels of a patch's side, patches of a token's side, and how often a picture is repeated in time."""
RENAMED = {
    "<image>": "<|image_pad|>",
    "<r148>": "<|vision_start|>",
    "<r149>": "<|vision_end|>",
    "<r150>": "<|video_pad|>",
    "<r151>": "which",
    "<r152>": "larger",
    "<r153>": "numbers",
    "<r154>": "order",
}
"""Words of the tiny VLM's vocabulary, most of them reserved, and what they become."""
LIKE = {"which": "what", "larger": "largest", "numbers": "number", "order": "backwards"}
"""New words, and those whose embeddings they start from."""


def make_processor() -> PaddleOCRVLProcessor:
    """Returns Qwen2-VL's pictures and the tiny VLM's words.

    PaddleOCR-VL's processor does what Qwen2.5-VL's does with pictures. It takes no videos, so it needs no torchvision.
    """
    words = json.loads((LLAVA / "tokenizer.json").read_text())
    words["model"]["vocab"] = {RENAMED.get(word, word): i for word, i in words["model"]["vocab"].items()}
    for token in words["added_tokens"]:
        token["content"] = RENAMED.get(token["content"], token["content"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(words)),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
        },
    )
    template = (LLAVA / "chat_template.jinja").read_text()
    template = template.replace("<image>", "<|vision_start|> <|image_pad|> <|vision_end|>")
    pictures = Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=FRAMES,
        min_pixels=96 * 96,
        max_pixels=96 * 96,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return PaddleOCRVLProcessor(image_processor=pictures, tokenizer=tokenizer, chat_template=template)


def make_config(processor: PaddleOCRVLProcessor) -> Qwen2_5_VLConfig:
    """Returns the language model's shapes as in the tiny VLM, with m-rope, and a tower with windows of 48 pixels."""
    text = json.loads((LLAVA / "config.json").read_text())["text_config"]
    shared = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    shared += ("vocab_size", "rms_norm_eps", "max_position_embeddings", "hidden_act")
    shared += ("bos_token_id", "eos_token_id", "pad_token_id")
    # Rows and columns are few: they get frequencies that tell eight of them apart.
    rope = {"rope_type": "default", "rope_theta": text["rope_parameters"]["rope_theta"], "mrope_section": [2, 4, 26]}
    identify = processor.tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        text_config={name: text[name] for name in shared} | {"rope_parameters": rope},
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES,
            "window_size": 48,
            "fullatt_block_indexes": [2],
            "out_hidden_size": text["hidden_size"],
        },
        image_token_id=identify("<|image_pad|>"),
        video_token_id=identify("<|video_pad|>"),
        vision_start_token_id=identify("<|vision_start|>"),
        vision_end_token_id=identify("<|vision_end|>"),
        tie_word_embeddings=False,
    )


@torch.no_grad()
def make_model(processor: PaddleOCRVLProcessor) -> Qwen2_5_VLForConditionalGeneration:
    """Returns a model in float32 whose tower is random and whose language model is the tiny VLM's."""
    model = Qwen2_5_VLForConditionalGeneration(make_config(processor))
    known = AutoModelForImageTextToText.from_pretrained(LLAVA, dtype=torch.float32).state_dict()
    language = {name: t for name, t in known.items() if "language_model" in name or name.startswith("lm_head")}
    left_out = model.load_state_dict(language, strict=False)
    if left_out.unexpected_keys or any("visual" not in name for name in left_out.missing_keys):
        raise RuntimeError(f"The tiny VLM's language model is of another build: {left_out}.")
    identify = processor.tokenizer.convert_tokens_to_ids
    for new, old in LIKE.items():
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight[identify(new)] = table.weight[identify(old)]
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id
    model.generation_config.pad_token_id = model.config.text_config.pad_token_id
    model.generation_config.bos_token_id = model.config.text_config.bos_token_id
    return model
