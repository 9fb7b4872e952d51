"""Paused forward passes are exact, independent of each other, and leave nothing behind."""

import contextlib
import contextvars
import copy
import gc
import inspect
import weakref

import pytest
import torch
from greenlet import getcurrent, greenlet
from torch import nn

from tests.families import FAMILIES, build, samples
from transformers_qaig.execution.interceptor import LayerInputs
from transformers_qaig.execution.offload import onload
from transformers_qaig.execution.paused_forward import PausedForwards


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


@pytest.fixture
def toy():
    return Toy()


def toy_samples(n, **kwargs):
    return [{"x": torch.randn(4), **kwargs} for _ in range(n)]


@pytest.mark.parametrize("name", FAMILIES)
def test_two_interleaved_streams_are_exact(name):
    model, processor = build(name)
    inputs, blocks = samples(processor, 3), blocks_of(model)
    expected = plain(model, inputs)
    with (
        PausedForwards(model, blocks, inputs) as full,
        PausedForwards(model, blocks, inputs[::-1]) as other,
        torch.no_grad(),
    ):
        for index, block in enumerate(blocks):
            calls, other_calls = full.inputs(index), other.inputs(index)
            assert list(calls) == list(other_calls) == [0, 1, 2]
            for sample, call in calls.items():
                full.resume(sample, block(*call.args, **call.kwargs))
                call = other_calls[sample]
                other.resume(sample, copy.deepcopy(block).forward(*call.args, **call.kwargs))
    assert_equal([output.logits for output in full.outputs()], expected)
    assert_equal([output.logits for output in other.outputs()], expected[::-1])
    assert_untouched(blocks)
    assert_equal(plain(model, inputs), expected)


def test_a_changed_block_changes_only_its_stream():
    model, processor = build("qwen3_vl")
    inputs, blocks = samples(processor, 3), blocks_of(model)
    expected = plain(model, inputs)
    changed = copy.deepcopy(blocks[1])
    with torch.no_grad():
        changed.mlp.down_proj.weight.add_(0.01)
    with PausedForwards(model, blocks, inputs) as full, PausedForwards(model, blocks, inputs) as quantized:
        for index, block in enumerate(blocks):
            for sample, call in full.inputs(index).items():
                call_q = quantized.inputs(index)[sample]
                block_q = changed if index == 1 else block
                full.resume(sample, block(*call.args, **call.kwargs))
                quantized.resume(sample, block_q(*call_q.args, **call_q.kwargs))
    assert_equal([output.logits for output in full.outputs()], expected)

    model.get_decoder().layers[1] = changed
    after = plain(model, inputs)
    assert all((one - other).abs().max() > 1e-4 for one, other in zip(after, expected))
    assert_equal([output.logits for output in quantized.outputs()], after)


def test_a_skipped_block_is_waited_for_at_a_later_door():
    model, processor = build("mllama")
    inputs = [*samples(processor, 2), *samples(processor, 2, image=False)]
    blocks = blocks_of(model)
    expected = plain(model, inputs)
    with PausedForwards(model, blocks, inputs) as forwards:
        stood = {}
        for index, block in enumerate(blocks):
            stood[index] = list(forwards.inputs(index))
            for sample, call in forwards.inputs(index).items():
                forwards.resume(sample, block(*call.args, **call.kwargs))
    assert stood == {0: [0, 1, 2, 3], 1: [0, 1], 2: [0, 1, 2, 3], 3: [0, 1]}
    assert_equal([output.logits for output in forwards.outputs()], expected)


def test_bytes_include_the_embeddings_that_a_forward_still_holds():
    model, processor = build("llava")
    blocks = blocks_of(model)
    with PausedForwards(model, blocks, samples(processor, 1)) as forwards:
        call = forwards.inputs(0)[0]
        embeddings = call.args[0].nbytes
        assert forwards.nbytes() == call.nbytes
        forwards.resume(0, blocks[0](*call.args, **call.kwargs))
        del call
        assert forwards.nbytes() == forwards.inputs(1)[0].nbytes + embeddings


def test_128_samples_paused_at_once():
    model, processor = build("llava")
    inputs, blocks = samples(processor, 128), blocks_of(model)
    expected = plain(model, inputs)
    with PausedForwards(model, blocks, inputs) as forwards:
        calls = forwards.inputs(0)
        assert len(calls) == 128
        hidden = sum(sample["input_ids"].numel() * 64 * 4 for sample in inputs)
        assert hidden < forwards.nbytes() < 3 * hidden
        assert forwards.nbytes() == sum(call.nbytes for call in calls.values())
        assert_equal(run_blocks(forwards, blocks), expected)
        assert forwards.nbytes() == 0


def test_the_models_own_collectors_still_work():
    model, processor = build("gemma3")
    inputs, blocks = samples(processor, 2), blocks_of(model)
    with torch.no_grad():
        expected = [model(**sample, use_cache=False, output_hidden_states=True).hidden_states for sample in inputs]
    with PausedForwards(model, blocks, [{**sample, "output_hidden_states": True} for sample in inputs]) as forwards:
        run_blocks(forwards, blocks)
    for output, states in zip(forwards.outputs(), expected):
        assert_equal(output.hidden_states, states)


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


def test_a_forward_that_fails_to_end_does_not_leave_doors(toy):
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


def test_a_forward_that_refuses_to_end_meets_no_door(toy):
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


def test_on_finish_takes_the_outputs(toy):
    taken = {}
    inputs = toy_samples(3)
    with PausedForwards(toy, toy.blocks, inputs, on_finish=taken.__setitem__) as forwards:
        for index, block in enumerate(toy.blocks):
            for sample, call in forwards.inputs(index).items():
                forwards.resume(sample, block(*call.args))
    assert_equal([taken[sample] for sample in range(3)], [toy(**sample, use_cache=False) for sample in inputs])
    assert forwards.outputs() == [None] * 3


def test_copies_have_no_door(toy):
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


def test_tensors_go_to_the_door_device():
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


def test_resident_refuses_what_it_could_not_bring_back():
    block = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match="cpu, meta cannot be moved"), onload(block, "meta"):
        pass
    with pytest.raises(ValueError, match="meta cannot be moved to cpu"), onload(block[1], "cpu"):
        pass


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), None])
def test_resident_does_nothing_where_the_block_is_already(device):
    block = nn.Linear(2, 2)
    pointer = block.weight.data_ptr()
    with onload(block, device):
        assert block.weight.data_ptr() == pointer
    assert block.weight.data_ptr() == pointer


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_blocks_and_calls_on_an_accelerator():
    model, processor = build("llava")
    inputs, blocks = samples(processor, 2), blocks_of(model)
    expected = plain(model, inputs)
    with PausedForwards(model, blocks, inputs, inputs_device="cuda") as forwards:
        for index, block in enumerate(blocks):
            with onload(block, "cuda"):
                assert {tensor.device.type for tensor in block.state_dict().values()} == {"cuda"}
                for sample, call in forwards.inputs(index).items():
                    assert call.args[0].is_cuda
                    forwards.resume(sample, block(*call.args, **call.kwargs))
                block.mlp.up_proj = copy.deepcopy(block.mlp.up_proj)
            assert {tensor.device.type for tensor in block.state_dict().values()} == {"cpu"}
    for output, wanted in zip(forwards.outputs(), expected):
        torch.testing.assert_close(output.logits, wanted, rtol=1e-3, atol=1e-3)

    with pytest.raises(KeyboardInterrupt), onload(blocks[0], "cuda"):
        raise KeyboardInterrupt
    assert next(blocks[0].parameters()).device.type == "cpu"
    call = LayerInputs((torch.ones(1),), {}).to("cuda")
    assert call.args[0].is_cuda


def test_a_model_that_draws_noise_draws_the_same_in_every_set_of_forwards() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Linear(4, 4)

        def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
            return self.block(torch.randn(1, 4))

    model, state = Noisy(), torch.get_rng_state()
    samples = [{"input_ids": torch.ones(1, 1)}] * 2
    with PausedForwards(model, [model.block], samples) as one, PausedForwards(model, [model.block], samples) as other:
        first, second = ([call.args[0] for call in forwards.inputs(0).values()] for forwards in (one, other))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(torch.get_rng_state(), state)
