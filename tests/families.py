"""Tiny, randomly initialised VLMs of many families, with a local tokenizer and processor: nothing comes from the Hub.

Every family is one function that returns `(model class, config, processor)`. `build` makes the model and gives it
weights that make tests bite: no norm is the identity, no bias and no gate is zero.
"""

import sys
from collections.abc import Callable
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1]))  # this file is imported from its own folder, too

from tests import seeds

Family = tuple[type[hf.PreTrainedModel], hf.PretrainedConfig, hf.ProcessorMixin]

CORPUS = (
    "hello world what is this a picture of the red cat on a mat user assistant system",
    "describe image please answer yes no how many blue boxes are left of it 0 1 2 3 4 5 6 7 8 9",
)
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
GRID = [[28, 56], [56, 28], [56, 56]]


def _chat_template(image: str) -> str:
    return (
        "{% for m in messages %}<s>{{ m['role'] }}: "
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}" + image + "{% else %}{{ c['text'] }}{% endif %}"
        "{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )


def _tokenizer(named: dict[str, str], image: str, others: tuple[str, ...] = ()) -> hf.PreTrainedTokenizerFast:
    """Byte-level BPE over a toy corpus.

    Args:
        named: special tokens the processor asks for by name, as {"image_token": "<image>", ...}.
        image: what the chat template writes where a message holds an image.
        others: further special tokens.
    """
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>", *named.values(), *others],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=named,
    )
    tokenizer.chat_template = _chat_template(image)
    return tokenizer


def _processor(cls: type[hf.ProcessorMixin], tokenizer: hf.PreTrainedTokenizerFast, image: Any, **kwargs: Any) -> Any:
    return cls(image_processor=image, tokenizer=tokenizer, chat_template=tokenizer.chat_template, **kwargs)


def _llava() -> Family:
    t = _tokenizer({"image_token": "<image>"}, "<image>")
    image = hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = _processor(
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


def _llava_next() -> Family:
    t = _tokenizer({"image_token": "<image>"}, "<image>")
    image = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=GRID
    )
    processor = _processor(
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


def _llava_onevision() -> Family:
    t = _tokenizer({"image_token": "<image>", "video_token": "<video>"}, "<image>")
    image = hf.LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, image_grid_pinpoints=GRID)
    processor = _processor(
        hf.LlavaOnevisionProcessor,
        t,
        image,
        video_processor=hf.LlavaOnevisionVideoProcessor(),
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


def _qwen_tokenizer() -> tuple[hf.PreTrainedTokenizerFast, dict[str, int]]:
    """The tokenizer of the Qwen-VL families, and the token ids their configs take."""
    named = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
    }
    t = _tokenizer(named, "<|vision_start|><|image_pad|><|vision_end|>", ("<|im_start|>", "<|im_end|>"))
    configured = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return t, dict(zip(configured, t.convert_tokens_to_ids(list(named.values()))))


def _qwen2_5_vl() -> Family:
    t, ids = _qwen_tokenizer()
    image = hf.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=84 * 84)
    processor = _processor(hf.Qwen2_5_VLProcessor, t, image, video_processor=hf.Qwen2VLVideoProcessor())
    config = hf.Qwen2_5_VLConfig(
        text_config={"vocab_size": len(t), "rope_parameters": MROPE, **TEXT},
        vision_config={"depth": 2, "patch_size": 14, "fullatt_block_indexes": [1], "window_size": 56, **QWEN_VISION},
        **ids,
    )
    return hf.Qwen2_5_VLForConditionalGeneration, config, processor


def _qwen3_processor(tokenizer: hf.PreTrainedTokenizerFast) -> Any:
    image = hf.Qwen2VLImageProcessor(
        patch_size=16, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
    )
    return _processor(hf.Qwen3VLProcessor, tokenizer, image, video_processor=hf.Qwen3VLVideoProcessor())


def _qwen3_vl() -> Family:
    t, ids = _qwen_tokenizer()
    config = hf.Qwen3VLConfig(
        text_config=TEXT | {"vocab_size": len(t), "head_dim": 16, "rope_parameters": MROPE, "num_hidden_layers": 5},
        vision_config={
            "depth": 3,
            "patch_size": 16,
            "deepstack_visual_indexes": [0, 1, 2],
            "num_position_embeddings": 16,
            **QWEN_VISION,
        },
        **ids,
    )
    return hf.Qwen3VLForConditionalGeneration, config, _qwen3_processor(t)


def _qwen3_vl_moe() -> Family:
    t, ids = _qwen_tokenizer()
    config = hf.Qwen3VLMoeConfig(
        text_config={
            "vocab_size": len(t),
            "head_dim": 16,
            "rope_parameters": MROPE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "decoder_sparse_step": 1,
            **TEXT,
        },
        vision_config={
            "depth": 2,
            "patch_size": 16,
            "deepstack_visual_indexes": [0, 1],
            "num_position_embeddings": 16,
            **QWEN_VISION,
        },
        **ids,
    )
    return hf.Qwen3VLMoeForConditionalGeneration, config, _qwen3_processor(t)


def _qwen3_5() -> Family:
    t, ids = _qwen_tokenizer()
    text = {
        "vocab_size": len(t),
        "num_hidden_layers": 4,
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "rope_parameters": MROPE | {"partial_rotary_factor": 1.0, "mrope_interleaved": True},
    }
    vision = {"depth": 2, "patch_size": 16, "num_position_embeddings": 16, **QWEN_VISION}
    config = hf.Qwen3_5Config(text_config=TEXT | text, vision_config=vision, **ids)
    return hf.Qwen3_5ForConditionalGeneration, config, _qwen3_processor(t)


def _idefics_tokenizer() -> hf.PreTrainedTokenizerFast:
    named = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tiles = tuple(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4))
    return _tokenizer(named, "<image>", tiles)


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


def _smolvlm() -> Family:
    t = _idefics_tokenizer()
    image = hf.SmolVLMImageProcessor(**_idefics_image())
    processor = _processor(hf.SmolVLMProcessor, t, image, video_processor=hf.SmolVLMVideoProcessor(), image_seq_len=1)
    return hf.SmolVLMForConditionalGeneration, hf.SmolVLMConfig(**_idefics_config(t)), processor


def _idefics3() -> Family:
    t = _idefics_tokenizer()
    processor = _processor(hf.Idefics3Processor, t, hf.Idefics3ImageProcessor(**_idefics_image()), image_seq_len=1)
    return hf.Idefics3ForConditionalGeneration, hf.Idefics3Config(**_idefics_config(t)), processor


def _internvl() -> Family:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    t = _tokenizer(named, "<IMG_CONTEXT>")
    image = hf.GotOcr2ImageProcessor(
        size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=2
    )
    processor = _processor(
        hf.InternVLProcessor, t, image, video_processor=hf.InternVLVideoProcessor(), image_seq_length=1
    )
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(vocab_size=len(t), **TEXT),
        vision_config=VISION | {"image_size": [28, 28], "patch_size": [14, 14]},
        image_token_id=t.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1,
        downsample_ratio=0.5,
    )
    return hf.InternVLForConditionalGeneration, config, processor


def _gemma3() -> Family:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    t = _tokenizer(named, "<start_of_image>")
    image = hf.Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = _processor(hf.Gemma3Processor, t, image, image_seq_length=4)
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


def _paligemma() -> Family:
    # The processor adds 1024 location and 128 segmentation tokens: it comes before len(t) is read.
    t = _tokenizer({"image_token": "<image>"}, "<image>")
    image = hf.SiglipImageProcessor(size={"height": 28, "width": 28})
    image.image_seq_length = 4
    processor = _processor(hf.PaliGemmaProcessor, t, image)
    config = hf.PaliGemmaConfig(
        text_config=hf.GemmaConfig(vocab_size=len(t), head_dim=16, **TEXT),
        vision_config=VISION | {"vision_use_head": False},
        image_token_id=t.convert_tokens_to_ids("<image>"),
        projection_dim=64,
    )
    return hf.PaliGemmaForConditionalGeneration, config, processor


def _mllama() -> Family:
    t = _tokenizer({"image_token": "<|image|>"}, "<|image|>", ("<|python_tag|>",))
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
    return hf.MllamaForConditionalGeneration, config, _processor(hf.MllamaProcessor, t, image)


def _mistral3() -> Family:
    named = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
    t = _tokenizer(named, "[IMG]")
    image = hf.PixtralImageProcessor(size={"longest_edge": 56}, patch_size={"height": 14, "width": 14})
    processor = _processor(hf.PixtralProcessor, t, image, patch_size=14, spatial_merge_size=2)
    config = hf.Mistral3Config(
        text_config=hf.MistralConfig(vocab_size=len(t), head_dim=16, **TEXT),
        vision_config=hf.PixtralVisionConfig(**(VISION | {"image_size": 56, "head_dim": 16})),
        image_token_id=t.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return hf.Mistral3ForConditionalGeneration, config, processor


def _glm4v() -> Family:
    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    marks = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")
    t = _tokenizer(named, "<|begin_of_image|><|image|><|end_of_image|>", marks)
    image = hf.Glm4vImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84 * 2})
    processor = _processor(hf.Glm4vProcessor, t, image, video_processor=hf.Glm4vVideoProcessor())
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


FAMILIES: dict[str, Callable[[], Family]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl_moe,
    "qwen3_5": _qwen3_5,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "mllama": _mllama,
    "paligemma": _paligemma,
    "mistral3": _mistral3,
    "glm4v": _glm4v,
}


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Random weights under which every norm, bias and gate matters; the same ones for every dtype, up to rounding.

    Vectors keep the value they were built with as their mean, so 1 + w norms (built with zeros) and plain norms
    (built with ones) both scale by about 1 ± 0.3. Scalars are gates, built with zeros: they get 0.5 on top.
    """
    generator = seeds.generator(seed)
    convolutions = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() <= 1:
            mean = 0.5 if parameter.numel() == 1 else 0.0
            scale = 0.1 if name.endswith("bias") or parameter.numel() == 1 else 0.3
            parameter.copy_(parameter.float() + mean + scale * noise)
        else:
            fan_in = prod(parameter.shape[1:]) if id(parameter) in convolutions else parameter.shape[-1]
            parameter.copy_(noise / fan_in**0.5)


def build(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The tiny model of family `name`, in eval mode, and its processor."""
    cls, config, processor = FAMILIES[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.seed(seed))
        model = hf.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    assert type(model) is cls, f"{name}: the auto class built a {type(model).__name__}, expected {cls.__name__}"
    randomise(model, seed)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 2
    return model.eval(), processor


def conversations(n: int, *, seed: int = 0, image: bool = True) -> list[list[dict[str, Any]]]:
    """`n` questions with answers, with pictures of different sizes and texts of different lengths.

    `image=False` leaves the pictures out.
    """
    rng = seeds.rng(seed)
    words = " ".join(CORPUS).split()
    found = []
    for _ in range(n):
        height, width = rng.integers(28, 96, size=2)
        picture = Image.fromarray(rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8))
        question, answer = (" ".join(rng.choice(words, size=rng.integers(3, 24))) for _ in range(2))
        content = [{"type": "image", "image": picture}] * image + [{"type": "text", "text": question}]
        found.append(
            [
                {"role": "user", "content": content},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ]
        )
    return found


def samples(processor: Any, n: int, *, seed: int = 0, image: bool = True) -> list[dict[str, Tensor]]:
    """Model inputs of batch 1 made of [`conversations`]."""
    return [
        dict(processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt"))
        for messages in conversations(n, seed=seed, image=image)
    ]


def save(name: str, folder: str | PathLike[str], dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes family `name` as a checkpoint folder that the Auto classes load."""
    model, processor = build(name, dtype=dtype)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
