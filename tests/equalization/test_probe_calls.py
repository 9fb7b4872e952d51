"""The probe leaves the block and its inputs as they were, whatever the mode."""

import copy
import threading
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.equalization.blocks import Attention, Branch, GatedMLP, X
from tests.equalization.probing import producers
from transformers_qaig.equalization import find_groups


def test_block_and_call_are_left_as_they_were():
    block = Branch(GatedMLP()).to(torch.bfloat16).train()
    before = copy.deepcopy(block.state_dict())
    lock = threading.Lock()
    block.forward = partial(lambda held, x: pytest.fail("the wrapper ran"), lock)  # a lock cannot be copied
    block.f.g.register_forward_pre_hook(lambda *_: pytest.fail("a hook ran"))
    x = X.to(torch.bfloat16).requires_grad_()
    assert producers(block, x) == {("f.g", "f.u"): "norm", ("f.o",): "f.u"}
    assert block.training
    assert "forward" in vars(block)
    assert len(block.f.g._forward_pre_hooks) == 1
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())
    assert torch.equal(x, X.to(torch.bfloat16))


def test_inputs_changed_in_place_are_fresh_in_every_run():
    class InPlace(Branch):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2.0).add_(self.f(self.norm(x)))

    x = X.clone()
    assert producers(InPlace(GatedMLP()), x) == {("f.g", "f.u"): "norm", ("f.o",): "f.u"}
    assert torch.equal(x, X)


def test_works_on_meta_parameters_under_inference_mode_and_autocast():
    block = Branch(Attention()).to("meta")
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        x = X + 0.0
        assert producers(block, x) == {("f.a", "f.b", "f.c"): "norm", ("f.d",): "f.c"}


def test_same_seed_same_groups_and_single_token():
    block = Branch(Attention())
    assert find_groups(block, (X,), {}, seed=3) == find_groups(block, (X,), {}, seed=3)
    assert producers(block, X[:, :1])[("f.d",)] == "f.c"
