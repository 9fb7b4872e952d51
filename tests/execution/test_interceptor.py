"""The interceptor of a block's forward: what the loop gets from it, and that it is removed without a trace."""

import copy
import inspect
import weakref

import pytest
import torch
from torch import nn

from tests.execution.toy import assert_equal, assert_untouched, blocks_of, plain, run_blocks, toy_samples
from tests.families import build, samples
from transformers_qaig.execution.paused_forward import PausedForwards


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_layers_stop_too():
    model, processor = build("llava")
    model.gradient_checkpointing_enable()
    model.train()
    inputs, blocks = samples(processor, 2), blocks_of(model)
    with PausedForwards(model, blocks, inputs) as forwards:
        assert_equal(run_blocks(forwards, blocks), plain(model, inputs))
    assert_untouched(blocks)


def test_hooks_of_a_block_see_the_forward(toy):
    toy.blocks[1].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    toy.blocks[1].register_forward_hook(lambda module, args, output: output + 1)
    inputs = toy_samples(3)
    expected = [toy(**sample, use_cache=False) for sample in inputs]
    with PausedForwards(toy, toy.blocks, inputs) as forwards:
        for index, block in enumerate(toy.blocks):
            for sample, call in forwards.inputs(index).items():
                forwards.resume(sample, block.forward(*call.args, **call.kwargs))
    assert_equal(forwards.outputs(), expected)


def test_a_call_is_let_go_once_its_forward_is_resumed(toy):
    with PausedForwards(toy, toy.blocks, toy_samples(2)) as forwards:
        calls = forwards.inputs(0)
        forwards.resume(0, torch.zeros(4))
        assert list(calls) == [1]
        with pytest.raises(KeyError, match="sample 0 does not wait at block 0"):
            calls[0]
        forwards.resume(1, torch.zeros(4))
        inner = weakref.ref(forwards.inputs(1)[1].args[0])
        forwards.resume(1, torch.ones(4))
        assert inner() is None
        assert len(calls) == 0


def test_copies_have_no_interceptor(toy):
    with PausedForwards(toy, toy.blocks, toy_samples(1)) as forwards:
        forwards.inputs(0)
        block, model = copy.deepcopy(toy.blocks[0]), copy.deepcopy(toy)
        assert_untouched([block, *model.blocks])
        assert "forward" in vars(toy.blocks[0])
        assert block.weight is not toy.blocks[0].weight
        assert torch.equal(block(torch.ones(4)), toy.blocks[0](torch.ones(4)))
        assert list(forwards.inputs(0)) == [0]
        assert inspect.signature(toy.blocks[0].forward) == inspect.signature(block.forward)
    assert_untouched(toy.blocks)


def test_a_forward_of_the_blocks_own_comes_back(toy):
    """As accelerate's hooks set it."""
    block = toy.blocks[1]
    own = lambda x: nn.Linear.forward(block, x) * 3  # noqa: E731
    block.forward = own
    inputs = toy_samples(2)
    expected = [toy(**sample, use_cache=False) for sample in inputs]
    first, second = PausedForwards(toy, toy.blocks, inputs), PausedForwards(toy, toy.blocks, inputs)
    first.__enter__()
    second.__enter__()
    for index, module in enumerate(toy.blocks):
        for sample, call in first.inputs(index).items():
            first.resume(sample, module(*call.args))
    assert_equal(first.outputs(), expected)
    first.__exit__(None, None, None)
    assert block.forward is not own
    assert list(second.inputs(0)) == [0, 1]
    second.__exit__(None, None, None)
    assert block.forward is own
    assert_untouched([toy.blocks[0], toy.blocks[2]])


def test_tensors_go_to_the_inputs_device():
    shared = torch.ones(2, 3)

    class Block(nn.Module):
        def forward(self, x, nested, flag):
            return x

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, use_cache):
            return self.block(shared, nested={"again": shared, "pair": (shared[0], None)}, flag="text")

    model = Model()
    with PausedForwards(model, [model.block], [{}], inputs_device="meta") as forwards:
        call = forwards.inputs(0)[0]
        assert call.args[0].device.type == call.kwargs["nested"]["pair"][0].device.type == "meta"
        assert call.args[0] is call.kwargs["nested"]["again"]
        assert call.kwargs["flag"] == "text"
        assert call.kwargs["nested"]["pair"][1] is None
        forwards.resume(0, shared)
    assert forwards.outputs()[0] is shared

    with PausedForwards(model, [model.block], [{}]) as forwards:
        call = forwards.inputs(0)[0]
        assert call.args[0] is shared
        assert call.nbytes == forwards.nbytes() == shared.nbytes
