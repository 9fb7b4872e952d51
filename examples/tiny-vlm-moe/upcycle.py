"""Turns the tiny VLM's MLPs into mixtures of experts that start close to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softmax
from transformers import LlavaConfig, LlavaForConditionalGeneration

EXPERTS, ROUTED, WIDTH, SHARED_WIDTH = 8, 2, 256, 256
SHARPNESS = 6.0
"""Standard deviation of the router's logits."""


def make_config(dense: LlavaConfig) -> LlavaConfig:
    """Returns the config of a model like `dense` whose language model is a Qwen2-MoE."""
    settings = dense.to_dict()
    text = settings["text_config"]
    known = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "hidden_act",
    )
    known += (
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    )
    settings["text_config"] = {name: text[name] for name in known} | {
        "model_type": "qwen2_moe",
        "num_experts": EXPERTS,
        "num_experts_per_tok": ROUTED,
        "norm_topk_prob": True,
        "moe_intermediate_size": WIDTH,
        "shared_expert_intermediate_size": SHARED_WIDTH,
        "intermediate_size": text["intermediate_size"],
        "tie_word_embeddings": False,
    }
    settings["vision_config"].pop("dtype", None)
    return LlavaConfig(**settings)


@torch.no_grad()
def upcycle(
    dense: LlavaForConditionalGeneration, batches: Sequence[dict[str, Tensor]]
) -> LlavaForConditionalGeneration:
    """Returns a mixture of experts whose blocks approximate those of `dense` on the given inputs.

    The router starts as the centroids of a spherical k-means over the tokens. The shared expert gets the neurons that
    matter most to all tokens. Each other expert gets those that matter most to its own; least squares refit its output.
    """
    moe = LlavaForConditionalGeneration(make_config(dense.config))
    missing = moe.load_state_dict(dense.state_dict(), strict=False).missing_keys
    if strange := [name for name in missing if ".mlp." not in name]:
        raise RuntimeError(f"{strange} are in no dense model.")
    tokens = _mlp_inputs(dense, batches)
    for old, new, x in zip(dense.model.language_model.layers, moe.model.language_model.layers, tokens):
        _split(old.mlp, new.mlp, x)
    return moe


def _mlp_inputs(dense: nn.Module, batches: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """Returns what each block's MLP reads: `[T, H]`, without padding."""
    layers = dense.model.language_model.layers
    found: list[list[Tensor]] = [[] for _ in layers]
    real = torch.ones(0)
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, inputs, store=store: store.append(inputs[0][real]))
        for layer, store in zip(layers, found)
    ]
    for batch in batches:
        real = batch["attention_mask"].bool()
        dense(**batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [torch.cat(parts) for parts in found]


def _split(mlp: nn.Module, sparse: nn.Module, x: Tensor) -> None:
    gate, up, down = (getattr(mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
    neurons = silu(x @ gate.T) * (x @ up.T)
    energy = neurons.square()
    norms = down.square().sum(0)

    shared = (energy.mean(0) * norms).topk(SHARED_WIDTH).indices
    sparse.shared_expert.gate_proj.weight.copy_(gate[shared])
    sparse.shared_expert.up_proj.weight.copy_(up[shared])
    sparse.shared_expert.down_proj.weight.copy_(2 * down[:, shared])
    sparse.shared_expert_gate.weight.zero_()  # sigmoid: a half
    rest = neurons @ down.T - neurons[:, shared] @ down[:, shared].T

    router = _spherical_centroids(x)
    sparse.gate.weight.copy_(router)
    chosen = softmax(x @ router.T, dim=-1).topk(ROUTED).indices
    for expert in range(EXPERTS):
        mine = (chosen == expert).any(1)
        score = energy[mine].mean(0) * norms
        score[shared] = -1
        own = score.topk(WIDTH).indices
        sparse.experts.gate_up_proj[expert].copy_(torch.cat([gate[own], up[own]]))
        inputs = neurons[mine][:, own]
        second = inputs.T @ inputs
        second += 1e-3 * second.diagonal().mean() * torch.eye(WIDTH)
        refit = torch.linalg.solve(second, inputs.T @ (rest[mine] - inputs @ down[:, own].T)).T
        sparse.experts.down_proj[expert].copy_(down[:, own] + refit)


def _spherical_centroids(x: Tensor, rounds: int = 30) -> Tensor:
    """Returns router weights `[EXPERTS, H]` that spread the tokens; none is preferred at their mean."""
    generator = torch.Generator().manual_seed(0)
    mean = x.mean(0)
    direction = mean / mean.norm()

    def normalized(rows: Tensor) -> Tensor:
        rows = rows - (rows @ direction)[:, None] * direction
        return rows / rows.norm(dim=1, keepdim=True)

    centroids = normalized(x[torch.randperm(len(x), generator=generator)[:EXPERTS]] - mean)
    for _ in range(rounds):
        nearest = (x @ centroids.T).argmax(1)
        counts = torch.bincount(nearest, minlength=EXPERTS)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, x - mean)
        lonely = counts < len(x) // (8 * EXPERTS)
        sums[lonely] = x[torch.randperm(len(x), generator=generator)[: int(lonely.sum())]] - mean
        centroids = normalized(sums)
    return centroids * SHARPNESS / (x @ centroids.T).std() / 2
