"""Each paused forward keeps its own torch modes and context variables, and the loop keeps its own."""

import contextlib
import contextvars

import pytest
import torch
from greenlet import greenlet
from torch import nn

from tests.execution.toy import assert_equal, blocks_of, plain, toy_samples
from tests.families import build, samples
from transformers_qaig.execution.paused_forward import PausedForwards


def test_gradients_for_the_loop_none_for_the_samples():
    model, processor = build("qwen2_5_vl")
    inputs, blocks = samples(processor, 2), blocks_of(model)
    seen = []
    handle = model.get_decoder().norm.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    with torch.enable_grad(), PausedForwards(model, blocks, inputs) as forwards:
        for index, block in enumerate(blocks):
            for sample, call in forwards.inputs(index).items():
                assert torch.is_grad_enabled()
                x = call.args[0].clone().requires_grad_()
                output = block(x, *call.args[1:], **call.kwargs)
                (gradient,) = torch.autograd.grad(output.square().sum(), x, retain_graph=True)
                assert gradient.abs().max() > 0
                forwards.resume(sample, output)
                if index + 1 < len(blocks):
                    following = forwards.inputs(index + 1) if sample == len(inputs) - 1 else {}
                    assert not any(call.args[0].requires_grad for call in following.values())
    handle.remove()
    assert seen == [False, False]
    assert not any(output.logits.requires_grad for output in forwards.outputs())
    assert_equal([output.logits for output in forwards.outputs()], plain(model, inputs))


def modes():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
    )


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "float64": lambda: default_dtype(torch.float64),
    "none": contextlib.nullcontext,
}


@pytest.mark.parametrize("outside", MODES)
@pytest.mark.parametrize("inside", MODES)
def test_modes_are_swapped_at_every_switch(toy, inside, outside):
    before = modes()
    with torch.no_grad(), MODES[inside]():
        expected = modes()
    seen = []
    inputs = toy_samples(2, context=MODES[inside], between=lambda index: seen.append(modes()))
    with PausedForwards(toy, toy.blocks, inputs) as forwards:
        list(forwards.inputs(0))
        assert modes() == before
        with MODES[outside]():
            own = modes()
            for index in range(len(toy.blocks)):
                for sample in forwards.inputs(index):
                    forwards.resume(sample, torch.zeros(4))
                    assert modes() == own
        assert modes() == before
    assert set(seen) == {expected}

    with MODES[outside](), PausedForwards(toy, toy.blocks, inputs) as forwards:
        list(forwards.inputs(0))
        assert modes() == own
    assert modes() == before


def test_autocast_keeps_no_stale_weights(toy):
    block, x = nn.Linear(4, 4, bias=False), torch.ones(4)
    inputs = toy_samples(1, context=MODES["bfloat16"])
    with PausedForwards(toy, toy.blocks, inputs) as forwards:
        forwards.inputs(0)
        with MODES["bfloat16"]():
            before = block(x)
        block.weight.data.mul_(2)
        forwards.resume(0, torch.zeros(4))
        with MODES["bfloat16"]():
            assert torch.equal(block(x), before * 2)


def test_tensors_made_under_inference_mode_by_the_caller_only(toy):
    with torch.inference_mode(), PausedForwards(toy, toy.blocks, [{"x": torch.zeros(4)}]) as forwards:
        forwards.inputs(0)
        forwards.resume(0, torch.ones(4))
        forwards.resume(0, toy.blocks[1](*forwards.inputs(1)[0].args))
        forwards.resume(0, torch.ones(4))
        assert forwards.outputs()[0].is_inference()  # handed over by the loop
    made = []
    inputs = toy_samples(1, between=lambda index: made.append(torch.ones(1)))
    with torch.inference_mode(), PausedForwards(toy, toy.blocks, inputs) as forwards:
        forwards.inputs(0)
        forwards.resume(0, torch.ones(4))
    assert not made[0].is_inference()


def test_each_forward_has_its_own_context_variables(toy):
    variable = contextvars.ContextVar("variable", default="the loop's")

    def scope(value):
        @contextlib.contextmanager
        def manager():
            assert variable.get() == "the loop's, set"
            token = variable.set(value)
            yield
            variable.reset(token)

        return manager

    seen = []
    inputs = [
        {"x": torch.zeros(4), "context": scope(n), "between": lambda index, n=n: seen.append(variable.get() == n)}
        for n in range(3)
    ]
    token = variable.set("the loop's, set")
    with PausedForwards(toy, toy.blocks, inputs) as forwards:
        for index in range(3):
            for sample in forwards.inputs(index):
                assert variable.get() == "the loop's, set"
                forwards.resume(sample, torch.zeros(4))
    variable.reset(token)
    assert len(seen) == 9
    assert all(seen)


def test_the_loop_may_itself_change_greenlets(toy):
    inputs = toy_samples(2)
    expected = [toy(**sample, use_cache=False) for sample in inputs]
    with PausedForwards(toy, toy.blocks, inputs) as forwards:
        greenlet(lambda: forwards.inputs(0)).switch()
        for index, block in enumerate(toy.blocks):

            def loop(index=index, block=block):
                for sample, call in forwards.inputs(index).items():
                    forwards.resume(sample, block(*call.args))
                return "done"

            assert greenlet(loop).switch() == "done"
    assert_equal(forwards.outputs(), expected)
