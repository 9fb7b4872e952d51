"""Families that read an image whole."""

import transformers as hf

from tests.tiny_models.parts import MROPE, QWEN_VISION, TEXT, VISION, Family, processor_of, tokenizer_of


def gemma3() -> Family:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    t = tokenizer_of(named, "<start_of_image>")
    image = hf.Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = processor_of(hf.Gemma3Processor, t, image, image_seq_length=4)
    text = {
        "vocab_size": len(t),
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 8,
    }
    boi, eoi, soft = t.convert_tokens_to_ids(list(named.values()))
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**(TEXT | text)),
        vision_config=VISION | {"image_size": 56, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=boi,
        eoi_token_index=eoi,
        image_token_id=soft,
    )
    return hf.Gemma3ForConditionalGeneration, config, processor


def paligemma() -> Family:
    # The processor adds 1024 location and 128 segmentation tokens: it comes before len(t) is read.
    t = tokenizer_of({"image_token": "<image>"}, "<image>")
    image = hf.SiglipImageProcessor(size={"height": 28, "width": 28})
    image.image_seq_length = 4
    processor = processor_of(hf.PaliGemmaProcessor, t, image)
    config = hf.PaliGemmaConfig(
        text_config=hf.GemmaConfig(vocab_size=len(t), head_dim=16, **TEXT),
        vision_config=VISION | {"vision_use_head": False},
        image_token_id=t.convert_tokens_to_ids("<image>"),
        projection_dim=64,
    )
    return hf.PaliGemmaForConditionalGeneration, config, processor


def mistral3() -> Family:
    named = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
    t = tokenizer_of(named, "[IMG]")
    image = hf.PixtralImageProcessor(size={"longest_edge": 56}, patch_size={"height": 14, "width": 14})
    processor = processor_of(hf.PixtralProcessor, t, image, patch_size=14, spatial_merge_size=2)
    config = hf.Mistral3Config(
        text_config=hf.MistralConfig(vocab_size=len(t), head_dim=16, **TEXT),
        vision_config=hf.PixtralVisionConfig(**(VISION | {"image_size": 56, "head_dim": 16})),
        image_token_id=t.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return hf.Mistral3ForConditionalGeneration, config, processor


def glm4v() -> Family:
    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    marks = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")
    video = "<|begin_of_video|><|video|><|end_of_video|>"
    t = tokenizer_of(named, "<|begin_of_image|><|image|><|end_of_image|>", marks, video)
    image = hf.Glm4vImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84 * 2})
    frames = hf.Glm4vVideoProcessor(size={"shortest_edge": 2 * 28 * 28, "longest_edge": 32 * 28 * 28})
    processor = processor_of(hf.Glm4vProcessor, t, image, video_processor=frames)
    configured = (
        "image_token_id",
        "video_token_id",
        "image_start_token_id",
        "image_end_token_id",
        "video_start_token_id",
        "video_end_token_id",
    )
    ids = dict(zip(configured, t.convert_tokens_to_ids([*named.values(), *marks])))
    config = hf.Glm4vConfig(
        text_config={"vocab_size": len(t), "rope_parameters": MROPE | {"partial_rotary_factor": 1.0}, **TEXT},
        vision_config={"depth": 2, "patch_size": 14, "image_size": 56, **QWEN_VISION},
        **ids,
    )
    return hf.Glm4vForConditionalGeneration, config, processor
