"""LLaVA and its successors."""

import transformers as hf

from tests.tiny_models.parts import GRID, TEXT, VISION, Family, processor_of, tokenizer_of


def llava() -> Family:
    t = tokenizer_of({"image_token": "<image>"}, "<image>")
    image = hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = processor_of(
        hf.LlavaProcessor,
        t,
        image,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(vocab_size=len(t), **TEXT),
        vision_config=hf.CLIPVisionConfig(**VISION),
        image_token_id=t.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    return hf.LlavaForConditionalGeneration, config, processor


def llava_next() -> Family:
    t = tokenizer_of({"image_token": "<image>"}, "<image>")
    image = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=GRID
    )
    processor = processor_of(
        hf.LlavaNextProcessor,
        t,
        image,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = hf.LlavaNextConfig(
        text_config=hf.LlamaConfig(vocab_size=len(t), **TEXT),
        vision_config=hf.CLIPVisionConfig(**VISION),
        image_token_id=t.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_grid_pinpoints=GRID,
    )
    return hf.LlavaNextForConditionalGeneration, config, processor


def llava_onevision() -> Family:
    t = tokenizer_of({"image_token": "<image>", "video_token": "<video>"}, "<image>", video="<video>")
    image = hf.LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, image_grid_pinpoints=GRID)
    processor = processor_of(
        hf.LlavaOnevisionProcessor,
        t,
        image,
        video_processor=hf.LlavaOnevisionVideoProcessor(size={"height": 28, "width": 28}),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
    )
    config = hf.LlavaOnevisionConfig(
        text_config=hf.Qwen2Config(vocab_size=len(t), **TEXT),
        vision_config=hf.SiglipVisionConfig(vision_use_head=False, **VISION),
        image_token_id=t.convert_tokens_to_ids("<image>"),
        video_token_id=t.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,
        image_grid_pinpoints=GRID,
    )
    return hf.LlavaOnevisionForConditionalGeneration, config, processor


def llava_next_video() -> Family:
    t = tokenizer_of({"image_token": "<image>", "video_token": "<video>"}, "<image>", video="<video>")
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    processor = processor_of(
        hf.LlavaNextVideoProcessor,
        t,
        hf.LlavaNextImageProcessor(**sizes, image_grid_pinpoints=GRID),
        video_processor=hf.LlavaNextVideoVideoProcessor(**sizes),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    image_token, video_token = t.convert_tokens_to_ids(["<image>", "<video>"])
    config = hf.LlavaNextVideoConfig(
        text_config=hf.LlamaConfig(vocab_size=len(t), **TEXT),
        vision_config=hf.CLIPVisionConfig(**(VISION | {"patch_size": 7})),
        image_token_id=image_token,
        video_token_id=video_token,
        vision_feature_layer=-1,
        image_grid_pinpoints=GRID,
    )
    return hf.LlavaNextVideoForConditionalGeneration, config, processor
