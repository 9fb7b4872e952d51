"""A small model to pause, and what tests of paused forwards compare."""

import contextlib

import torch
from torch import nn


def blocks_of(model):
    return list(model.get_decoder().layers)


@torch.no_grad()
def plain(model, inputs):
    return [model(**sample, use_cache=False).logits for sample in inputs]


def run_blocks(forwards, blocks, treated=None):
    """Runs the forwards to their end with `treated` blocks in place of `blocks`; returns the logits."""
    for index, block in enumerate(treated or blocks):
        for sample, call in forwards.inputs(index).items():
            forwards.resume(sample, block(*call.args, **call.kwargs))
    return [output.logits for output in forwards.outputs()]


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        assert torch.equal(one, other)


def assert_untouched(blocks):
    for block in blocks:
        assert "forward" not in vars(block)
        assert "__deepcopy__" not in vars(block)


class Toy(nn.Module):
    """A model of `depth` linear blocks; a sample is a vector `x`, and hooks into its forward as keyword arguments."""

    def __init__(self, depth=3):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))

    def forward(self, x, order=None, context=contextlib.nullcontext, between=lambda index: None, use_cache=True):
        assert use_cache is False
        with context():
            for index in range(len(self.blocks)) if order is None else order:
                x = self.blocks[index](x)
                between(index)
        return x


def toy_samples(n, **kwargs):
    return [{"x": torch.randn(4), **kwargs} for _ in range(n)]
