"""Checks for overflow in float16, for recipes that read no data and so run no forward pass of their own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..structure import ModelStructure
from ..utils.finite import is_finite
from ..utils.logging import get_logger
from .block_outputs import first_tensor
from .exclusions import overflow_advice
from .offload import offloaded

logger = get_logger(__name__)

TOKENS = 16


@torch.no_grad()
def check_forward(model: PreTrainedModel, structure: ModelStructure, device: torch.device | str | None) -> None:
    """Refuses a float16 model in which a few tokens of text overflow.

    Other dtypes have the range of float32 and are not run. Nor is a model that takes no text alone.

    Args:
        model: in full precision, on the CPU.
        structure: of the model.
        device: where its modules compute, one at a time; None: the CPU.

    Raises:
        ValueError: NaN or Inf in the output; the message names the first block that has it.
    """
    if structure.dtype != torch.float16:
        return
    found: list[str] = []

    def look(path: str, module: nn.Module, args: Any, output: Any) -> None:
        if not found and not is_finite(first_tensor(output)):
            found.append(path)

    blocks = structure.blocks
    with offloaded(model, list(blocks.values()), device) as memory:
        for block in blocks.values():
            memory.watch(block, stays=False)
        handles = [block.register_forward_hook(partial(look, path)) for path, block in blocks.items()]
        try:
            logits = getattr(model(input_ids=_text(structure), use_cache=False), "logits", None)
        except Exception as error:  # a model's forward may raise anything where it has no picture
            logger.info("%s is not looked at for overflow, a text alone fails: %s", structure.model_name, error)
            return
        finally:
            for handle in handles:
                handle.remove()
    if found or (logits is not None and not is_finite(logits)):
        where = f"the output of {found[0]}" if found else "the logits"
        raise ValueError(
            f"NaN or Inf turned up in {where} for a text of {TOKENS} tokens. {overflow_advice(structure.dtype)}"
        )


def _text(structure: ModelStructure) -> Tensor:
    """Returns ids from all over the vocabulary, int64 [1, TOKENS], without those that stand for pictures."""
    assert structure.embeddings.module is not None
    ids = torch.arange(len(structure.embeddings.module.get_parameter("weight")))
    ids = ids[~torch.isin(ids, torch.tensor(structure.picture_tokens, dtype=torch.long))]
    return ids[torch.linspace(0, len(ids) - 1, TOKENS).long()].unsqueeze(0)
