"""A forward pass that is ended at one module."""

import gc
import weakref

import torch
from torch import nn

from transformers_qaig.utils.first_call import first_call


def test_returns_the_call_and_runs_nothing_after_it() -> None:
    ran = []
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Identity())
    model[2].register_forward_hook(lambda *_: ran.append(1))
    (x,), _ = first_call(model[2], lambda: model(torch.ones(1, 2)))
    assert x.shape == (1, 3)
    assert not ran
    assert first_call(nn.ReLU(), lambda: model(torch.ones(1, 2))) is None


def test_holds_no_tensor_of_the_forward() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    gc.collect()
    gc.disable()
    try:
        first_call(model[1], lambda: model(torch.ones(1, 2)))
        assert seen[0]() is None
    finally:
        gc.enable()
