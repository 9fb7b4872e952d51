"""Errors, interrupts, misuse and an early end leave nothing of paused forwards behind."""

import contextlib
import gc
import weakref

import pytest
import torch
from greenlet import getcurrent, greenlet

from tests.execution.toy import Toy, assert_untouched, run_blocks, toy_samples
from transformers_qaig.execution.paused_forward import PausedForwards


def test_a_failing_forward_names_its_sample_and_its_cause(toy):
    def fail(index):
        if index == 1:
            raise KeyError("broken")

    inputs = [*toy_samples(2), *toy_samples(1, between=fail)]
    with (
        pytest.raises(RuntimeError, match="sample 2 failed after block 1") as caught,
        PausedForwards(toy, toy.blocks, inputs) as forwards,
    ):
        run_blocks(forwards, toy.blocks)
    assert isinstance(caught.value.__cause__, KeyError)
    assert_untouched(toy.blocks)

    with (
        pytest.raises(RuntimeError, match="sample 0 failed before the first block"),
        PausedForwards(toy, toy.blocks, [{"y": 1}]) as forwards,
    ):
        forwards.inputs(0)
    assert_untouched(toy.blocks)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("where", ["loop", "forward"])
def test_interrupts_and_errors_restore_everything(toy, error, where):
    unwound = []

    @contextlib.contextmanager
    def context():
        try:
            yield
        finally:
            unwound.append(True)

    def fail(index):
        raise error

    inputs = toy_samples(3, context=context, **({"between": fail} if where == "forward" else {}))

    def stopped():
        with PausedForwards(toy, toy.blocks, inputs) as forwards, PausedForwards(toy, toy.blocks, inputs) as second:
            second.inputs(0)
            forwards.inputs(0)
            forwards.resume(0, torch.zeros(4))
            raise error

    with pytest.raises(RuntimeError if (error, where) == (ValueError, "forward") else error):
        stopped()
    assert len(unwound) == 6
    assert_untouched(toy.blocks)
    assert torch.is_grad_enabled()
    assert type(getcurrent()) is greenlet


def test_a_forward_that_fails_to_end_leaves_no_interceptor(toy):
    @contextlib.contextmanager
    def context():
        try:
            yield
        finally:
            raise OSError("while ending")

    unwound = []

    @contextlib.contextmanager
    def fine():
        try:
            yield
        finally:
            unwound.append(True)

    inputs = [*toy_samples(1, context=fine), *toy_samples(1, context=context), *toy_samples(1, context=fine)]
    with pytest.raises(OSError, match="while ending"), PausedForwards(toy, toy.blocks, inputs) as forwards:
        forwards.inputs(0)
    assert len(unwound) == 2
    assert_untouched(toy.blocks)


def test_a_forward_that_refuses_to_end_is_not_intercepted(toy):
    reached = []

    def swallow():
        return contextlib.suppress(BaseException)

    class Stubborn(Toy):
        def forward(self, x, use_cache):
            for block in self.blocks:
                with swallow():
                    block(x)
                reached.append(block)

    model = Stubborn()
    with PausedForwards(model, model.blocks, toy_samples(1)) as forwards:
        forwards.inputs(0)
    assert reached == list(model.blocks)
    assert_untouched(model.blocks)


def test_leaving_early_ends_forwards_and_frees_what_they_held(toy):
    class Held:
        pass

    held = []

    @contextlib.contextmanager
    def context():
        thing = Held()
        held.append(weakref.ref(thing))
        yield thing

    with PausedForwards(toy, toy.blocks, toy_samples(4, context=context)) as forwards:
        forwards.inputs(0)
        forwards.resume(1, torch.zeros(4))
        assert all(reference() is not None for reference in held)
    gc.collect()
    assert len(held) == 4
    assert all(reference() is None for reference in held)
    assert forwards.outputs() == [None] * 4
    assert_untouched(toy.blocks)


def test_order_of_the_blocks(toy):
    for order, message in (([0, 0], "block 0 is called a second time"), ([1, 0], "block 0 is called after block 1")):
        with PausedForwards(toy, toy.blocks, toy_samples(1, order=order)) as forwards:
            forwards.inputs(0)
            with pytest.raises(RuntimeError, match=f"sample 0 failed.*{message}"):
                forwards.resume(0, torch.zeros(4))
        assert_untouched(toy.blocks)
    with pytest.raises(ValueError, match="same module twice"):
        PausedForwards(toy, [toy.blocks[0], toy.blocks[0]], [])


def test_misuse_is_an_error(toy):
    forwards = PausedForwards(toy, toy.blocks, toy_samples(2))
    with pytest.raises(RuntimeError, match="not open"):
        forwards.inputs(0)
    with forwards:
        with pytest.raises(RuntimeError, match="sample 0 does not wait"):
            forwards.resume(0, torch.zeros(4))
        with pytest.raises(IndexError, match="no block 3"):
            forwards.inputs(3)
        with pytest.raises(RuntimeError, match="already open"):
            forwards.__enter__()
        forwards.inputs(0)
        forwards.resume(1, torch.zeros(4))
        with pytest.raises(RuntimeError, match="sample 0 still waits at block 0"):
            forwards.inputs(1)
    assert_untouched(toy.blocks)
