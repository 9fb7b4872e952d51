"""Sizes, tokenizer and processor of tiny models."""

from typing import Any

import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

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


def _chat_template(image: str, video: str) -> str:
    return (
        "{% for m in messages %}<s>{{ m['role'] }}: "
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}"
        + image
        + "{% elif c['type'] == 'video' %}"
        + video
        + "{% else %}{{ c['text'] }}{% endif %}"
        "{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )


def tokenizer_of(
    named: dict[str, str], image: str, others: tuple[str, ...] = (), video: str = ""
) -> hf.PreTrainedTokenizerFast:
    """Byte-level BPE over a toy corpus.

    Args:
        named: special tokens the processor asks for by name, as {"image_token": "<image>", ...}.
        image: what the chat template writes where a message holds an image.
        others: further special tokens.
        video: what the chat template writes where a message holds a video.
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
    tokenizer.chat_template = _chat_template(image, video)
    return tokenizer


def processor_of(cls: type[hf.ProcessorMixin], tokenizer: hf.PreTrainedTokenizerFast, image: Any, **kwargs: Any) -> Any:
    return cls(image_processor=image, tokenizer=tokenizer, chat_template=tokenizer.chat_template, **kwargs)
