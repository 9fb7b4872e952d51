"""Families that cut an image into tiles of one size."""

from typing import Any

import transformers as hf

from tests.tiny_models.parts import TEXT, VISION, Family, processor_of, tokenizer_of


def _idefics_tokenizer() -> hf.PreTrainedTokenizerFast:
    named = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
        "video_token": "<video>",
    }
    tiles = tuple(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4))
    return tokenizer_of(named, "<image>", tiles)


def _idefics_image() -> dict[str, Any]:
    return {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}, "do_image_splitting": True}


def _idefics_config(tokenizer: hf.PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "text_config": hf.LlamaConfig(vocab_size=len(tokenizer), **TEXT),
        "vision_config": VISION,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "scale_factor": 2,
        "pad_token_id": 0,
    }


def smolvlm() -> Family:
    t = _idefics_tokenizer()
    frames = hf.SmolVLMVideoProcessor(size={"longest_edge": 28}, max_image_size={"longest_edge": 28})
    image = hf.SmolVLMImageProcessor(**_idefics_image())
    processor = processor_of(hf.SmolVLMProcessor, t, image, video_processor=frames, image_seq_len=1)
    return hf.SmolVLMForConditionalGeneration, hf.SmolVLMConfig(**_idefics_config(t)), processor


def idefics3() -> Family:
    t = _idefics_tokenizer()
    processor = processor_of(hf.Idefics3Processor, t, hf.Idefics3ImageProcessor(**_idefics_image()), image_seq_len=1)
    return hf.Idefics3ForConditionalGeneration, hf.Idefics3Config(**_idefics_config(t)), processor


def internvl() -> Family:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    t = tokenizer_of(named, "<IMG_CONTEXT>", video="<video>")
    image = hf.GotOcr2ImageProcessor(
        size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=2
    )
    frames = hf.InternVLVideoProcessor(size={"height": 28, "width": 28})
    processor = processor_of(hf.InternVLProcessor, t, image, video_processor=frames, image_seq_length=1)
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(vocab_size=len(t), **TEXT),
        vision_config=VISION | {"image_size": [28, 28], "patch_size": [14, 14]},
        image_token_id=t.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1,
        downsample_ratio=0.5,
    )
    return hf.InternVLForConditionalGeneration, config, processor


def mllama() -> Family:
    t = tokenizer_of({"image_token": "<|image|>"}, "<|image|>", ("<|python_tag|>",))
    image = hf.MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=2)
    text = {
        "vocab_size": len(t),
        "num_hidden_layers": 4,
        "cross_attention_layers": [1, 3],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
    vision = {
        "attention_heads": 2,
        "num_global_layers": 1,
        "max_num_tiles": 2,
        "vision_output_dim": 64,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    config = hf.MllamaConfig(
        text_config=TEXT | text, vision_config=VISION | vision, image_token_index=t.convert_tokens_to_ids("<|image|>")
    )
    return hf.MllamaForConditionalGeneration, config, processor_of(hf.MllamaProcessor, t, image)
