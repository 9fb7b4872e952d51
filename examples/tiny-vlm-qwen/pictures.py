"""Pictures as the towers read them, and a faster attention for pictures of one size."""

from __future__ import annotations

from types import MethodType
from typing import Any

import numpy as np
import torch
from PIL import Image
from start import FRAMES, MERGE, PATCH
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision


def pixels_of(pictures: list[Image.Image]) -> Tensor:
    """Returns float32 `[B, 3, 96, 96]` from -1 to 1: what the SigLIP tower reads."""
    stacked = torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def patches_of(pixels: Tensor) -> dict[str, Tensor]:
    """Returns the same pictures as Qwen2-VL's processor does: `[B * 256, 216]`, and the grid of each."""
    batch, channels, height, width = pixels.shape
    rows, columns = height // PATCH // MERGE, width // PATCH // MERGE
    split = pixels.reshape(batch, channels, rows, MERGE, PATCH, columns, MERGE, PATCH)
    patches = split.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, FRAMES, -1, -1)
    grid = torch.tensor([[1, rows * MERGE, columns * MERGE]] * batch)
    return {"pixel_values": patches.reshape(batch * rows * columns * MERGE**2, -1), "image_grid_thw": grid}


def make_fast(tower: nn.Module, tokens: int = 256) -> None:
    """Makes a tower's layers attend to all windows at once, and compiles them: for pictures of 96x96 pixels only."""
    window = (tower.window_size // tower.patch_size) ** 2
    for index, block in enumerate(tower.blocks):
        block.attn.window = tokens if index in tower.fullatt_block_indexes else window
        block.attn.forward = MethodType(_attention, block.attn)
        block.compile(dynamic=False)
    tower.merger.compile(dynamic=False)


def _attention(self: Any, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any) -> Tensor:
    count = hidden_states.shape[0]
    query, key, value = self.qkv(hidden_states).view(count, 3, self.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    windows = [
        t.view(count // self.window, self.window, self.num_heads, -1).transpose(1, 2) for t in (query, key, value)
    ]
    return self.proj(scaled_dot_product_attention(*windows).transpose(1, 2).reshape(count, -1))
