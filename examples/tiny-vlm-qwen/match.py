"""A head of the first layer that starts out attending from a name to the tokens that show it."""

from __future__ import annotations

import random
from typing import Any

import torch
from harder_scenes import scene
from loop import FIRST_SEED
from pictures import patches_of, pixels_of
from scenes import CLASSES, background, paste
from torch import Tensor

HEAD, GROUP, WIDTH = 3, 2, 64
"""The head of queries, the heads that share its keys, and their width."""
SCORE, SINK = 11.0, 9.5
"""Scores of a token that shows the name, and of the first token of all, which takes what is left: so heads count."""


def _tokens(model: Any, pictures: list[Any]) -> Tensor:
    """Returns `[B, 64, H]`, what the first layer's attention reads of pictures."""
    inputs = patches_of(pixels_of(pictures))
    tokens = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
    return model.model.language_model.layers[0].input_layernorm(tokens).view(len(pictures), 64, -1)


def _fit(inputs: list[Tensor], targets: list[Tensor], weights: list[float]) -> Tensor:
    """Returns the matrix `[out, in]` of ridge regression."""
    x = torch.cat([i * w**0.5 / len(i) ** 0.5 for i, w in zip(inputs, weights)]).double()
    y = torch.cat([t * w**0.5 / len(t) ** 0.5 for t, w in zip(targets, weights)]).double()
    second = x.T @ x
    second += 1e-4 * second.diagonal().mean() * torch.eye(len(second))
    return torch.linalg.solve(second, x.T @ y).T.float()


@torch.no_grad()
def match_names(model: Any, processor: Any) -> None:
    """Sets a head's queries and keys, by least squares, to codes that a name and the tokens that show it share.

    Codes stand where rotary embeddings turn slowly. The other heads that share the keys do not read them at first.
    """
    shown = []
    for name in CLASSES:
        rng = random.Random(name)
        pictures = [background(rng) for _ in range(8)]
        for picture in pictures:
            for corner in range(4):
                paste(picture, name, (corner % 2) * 48, (corner // 2) * 48, 48, rng)
        shown.append(_tokens(model, pictures).flatten(0, 1))
    means = torch.stack([tokens.mean(0) for tokens in shown])
    scenes = (scene(seed) for seed in range(FIRST_SEED + 990_000, FIRST_SEED + 990_200))
    others = _tokens(model, [picture for picture, turns in scenes if "number" in turns[0][0]]).flatten(0, 1)

    slow = torch.cat([torch.arange(16, 32), torch.arange(48, 64)])
    codes = torch.linalg.svd(means - means.mean(0), full_matrices=False)[0][:, : len(slow) - 1]
    codes = torch.cat([codes / codes.norm(dim=1, keepdim=True), torch.zeros(len(codes), 1)], 1)
    language = model.model.language_model
    words = language.layers[0].input_layernorm(language.embed_tokens.weight)
    names = processor.tokenizer.convert_tokens_to_ids(CLASSES)
    first = model.config.text_config.bos_token_id
    wanted, kept = torch.zeros(len(words), len(slow)), torch.zeros(len(words), len(slow))
    wanted[names] = codes
    kept[first, -1] = 1
    nothing = torch.zeros(len(others), len(slow))
    repeated = codes.repeat_interleave(len(shown[0]), 0)
    keys = _fit([torch.cat(shown), others, words], [repeated, nothing, kept], [1.0, 0.3, 1.0])
    queries = _fit([words], [wanted], [1.0])

    attention = language.layers[0].self_attn
    rows = torch.arange(HEAD * WIDTH, (HEAD + 1) * WIDTH)
    group = torch.arange(HEAD // GROUP * GROUP * WIDTH, (HEAD // GROUP + 1) * GROUP * WIDTH).view(GROUP, WIDTH)
    size = (SCORE * WIDTH**0.5) ** 0.5
    attention.q_proj.weight[group[:, slow].flatten()] = 0
    attention.q_proj.bias[group[:, slow].flatten()] = 0
    attention.q_proj.weight[rows] = 0
    attention.q_proj.bias[rows] = 0
    attention.q_proj.weight[rows[slow]] = size * queries
    attention.q_proj.bias[rows[slow[-1]]] = SINK / SCORE * size
    own = HEAD // GROUP * WIDTH + slow
    attention.k_proj.weight[own] = size * keys
    attention.k_proj.bias[own] = 0
