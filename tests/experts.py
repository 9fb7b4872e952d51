"""Tiny, randomly initialised text models whose experts are stored in every way that there is."""

from collections.abc import Callable

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.aria import modeling_aria

from transformers_qaig.nn.experts_layout import ExpertsLayout, find_experts

TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "mixtral": lambda: hf.MixtralConfig(num_local_experts=4, head_dim=16, **TEXT),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(
        num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=16, **TEXT
    ),
    "granitemoe": lambda: hf.GraniteMoeConfig(num_local_experts=4, num_experts_per_tok=2, **TEXT),
    "aria_text": lambda: hf.AriaTextConfig(moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1, **TEXT),
    "gpt_oss": lambda: hf.GptOssConfig(num_local_experts=4, num_experts_per_tok=2, head_dim=16, **TEXT),
    "llama4_text": lambda: hf.Llama4TextConfig(
        num_local_experts=4, interleave_moe_layer_step=1, intermediate_size_mlp=64, head_dim=16, **TEXT
    ),
    "nemotron_h": lambda: hf.NemotronHConfig(
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        **{name: value for name, value in TEXT.items() if name != "num_hidden_layers"},
    ),
    "deepseek_v3": lambda: hf.DeepseekV3Config(
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=16,
        **{**TEXT, "num_key_value_heads": 4},
    ),
    "longcat_flash": lambda: hf.LongcatFlashConfig(
        num_layers=1,
        n_routed_experts=4,
        zero_expert_num=2,
        moe_topk=2,
        ffn_hidden_size=96,
        expert_ffn_hidden_size=64,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        head_dim=16,
        v_head_dim=16,
        **{
            **{name: value for name, value in TEXT.items() if name not in ("intermediate_size", "num_hidden_layers")},
            "num_key_value_heads": 4,
        },
    ),
}
"""Plain, transposed, with biases and interleaved, without routing, without a gate, with a dense first layer, and with
experts that return a token as it is."""
if hasattr(modeling_aria, "AriaGroupedExpertsGemm"):  # of Transformers 5.17, whose weights are of two such modules
    del CONFIGS["aria_text"]


def build(name: str, dtype: torch.dtype = torch.float32) -> hf.PreTrainedModel:
    """Makes a model whose experts differ."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    return model.to(dtype)


def stack_of(model: nn.Module) -> tuple[str, ExpertsLayout]:
    """Returns the path of the first stack, and its layout."""
    return next(iter(find_experts(model).items()))


def inputs_of(layout: ExpertsLayout, tokens: int = 6, *, skip: int | None = None) -> tuple[Tensor, ...]:
    """Returns random arguments of a stack's forward; no token is routed to expert `skip`."""
    generator = torch.Generator().manual_seed(1)
    if not layout.is_routed:
        return (torch.randn(tokens * layout.num_experts, layout.hidden_size, generator=generator),)
    scores = torch.rand(tokens, layout.num_choices, generator=generator)
    if skip is not None:
        scores[:, skip] = -1
    weights, index = scores.topk(2)
    return torch.randn(tokens, layout.hidden_size, generator=generator), index, weights
