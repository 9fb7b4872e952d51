"""Gradients at tokens against finite differences of the loss."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import seeds
from transformers_qaig.token_weights.token_gradients import token_gradients

WIDTH, VOCABULARY = 3, 7
IDS = torch.tensor([[1, 4, 2, 6]])
ANSWER = torch.tensor([[False, False, True, True]])


class Mixes(nn.Module):
    """A block that reads earlier tokens, too; its output is a tuple, as many blocks' is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.shift = 0.0

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return x + torch.tanh(self.linear(x.cumsum(1))) + self.shift, "more"


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(seeds.seed(3))
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.blocks = nn.ModuleList([Mixes(), Mixes()])
        self.unused = Mixes()
        self.double().requires_grad_(False)

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        assert not use_cache
        x = self.embed(input_ids)
        for block in self.blocks:
            x, _ = block(x)
        return SimpleNamespace(logits=self.head(x))


def loss(model: Model) -> float:
    log_p = model(IDS, False).logits.log_softmax(-1)[0]
    return -sum(float(log_p[t - 1, IDS[0, t]]) for t in range(IDS.shape[1]) if ANSWER[0, t])


@pytest.mark.parametrize("index", [0, 1])
def test_they_are_the_mean_size_of_the_losss_derivatives(index: int) -> None:
    model = Model()
    found = token_gradients(model, list(model.blocks), {"input_ids": IDS}, ANSWER)[index]
    expected, step = torch.zeros(IDS.shape[1]), 1e-5
    for token in range(IDS.shape[1]):
        for channel in range(WIDTH):
            shift = torch.zeros(1, IDS.shape[1], WIDTH, dtype=torch.float64)
            shift[0, token, channel] = step
            sides = []
            for side in (shift, -shift):
                model.blocks[index].shift = side
                sides.append(loss(model))
            model.blocks[index].shift = 0.0
            expected[token] += abs(sides[0] - sides[1]) / (2 * step) / WIDTH
    assert torch.allclose(found, expected[None], rtol=1e-4, atol=1e-7)
    # The answers are predicted at tokens 1 and 2. Token 0 reaches them through the last block alone.
    assert (found[0] > 0).tolist() == [index == 0, True, True, False]


def test_a_block_that_does_not_run_has_none_and_hooks_are_gone() -> None:
    model = Model()
    first, unused = token_gradients(model, [model.blocks[0], model.unused], {"input_ids": IDS}, ANSWER)
    assert first.shape == (1, 4)
    assert first.dtype == torch.float32
    assert not unused.numel()
    assert not any(block._forward_hooks for block in (*model.blocks, model.unused))
