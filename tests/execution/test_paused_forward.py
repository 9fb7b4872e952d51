"""Paused forward passes are exact and independent of each other."""

import copy

import pytest
import torch
from torch import nn

from tests.execution.toy import assert_equal, assert_untouched, blocks_of, plain, run_blocks, toy_samples
from tests.families import FAMILIES, build, samples
from transformers_qaig.execution import paused_forward
from transformers_qaig.execution.layer_inputs import LayerInputs
from transformers_qaig.execution.offload import onload
from transformers_qaig.execution.paused_forward import PausedForwards, waiting_device


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


def test_a_sample_that_skips_a_block_pauses_at_a_later_one():
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


def test_on_finish_takes_the_outputs(toy):
    taken = {}
    inputs = toy_samples(3)
    with PausedForwards(toy, toy.blocks, inputs, on_finish=taken.__setitem__) as forwards:
        for index, block in enumerate(toy.blocks):
            for sample, call in forwards.inputs(index).items():
                forwards.resume(sample, block(*call.args))
    assert_equal([taken[sample] for sample in range(3)], [toy(**sample, use_cache=False) for sample in inputs])
    assert forwards.outputs() == [None] * 3


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


def test_inputs_wait_on_the_device_where_they_take_an_eighth_of_its_free_memory(monkeypatch):
    needed = 2 * paused_forward.WITH_ARGUMENTS * 10 * 64
    for free, expected in ((8 * needed, "cuda:0"), (8 * needed - 1, "cpu")):
        monkeypatch.setattr(paused_forward, "free_memory", lambda device, free=free: free)
        assert waiting_device("cuda:0", 10, 64) == expected
        assert waiting_device("cpu", 10, 64) == waiting_device(None, 10, 64) == "cpu"
