import pytest
import torch
from torch import Tensor, nn

from tests.families import build, samples
from tests.tolerance import assert_close, terms_of
from transformers_qaig.equalization.probe import Group, find_groups
from transformers_qaig.execution.block_outputs import OutputError
from transformers_qaig.execution.exclusions import NotFinite
from transformers_qaig.execution.gathering import gather_group_inputs
from transformers_qaig.execution.group_inputs import NotReached, enter, is_tokenwise, run
from transformers_qaig.execution.layer_inputs import LayerInputs, TargetInputs, forward
from transformers_qaig.execution.streamed_inputs import StreamedInputs
from transformers_qaig.structure import find_decoder_blocks


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, list[LayerInputs], list[Tensor], dict[str, Group]]:
    """A block, calls of different lengths, masks, and its groups by f_s."""
    model, processor = build("llava")
    block = next(iter(find_decoder_blocks(model).values()))
    calls: list[LayerInputs] = []
    handle = block.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(LayerInputs(args, kwargs)), with_kwargs=True
    )
    data = samples(processor, 5)
    with torch.no_grad():
        for sample in data:
            model(**sample, use_cache=False)
    handle.remove()
    groups = {group.module: group for group in find_groups(block, calls[0].args, calls[0].kwargs)}
    return block, calls, [sample["attention_mask"].bool() for sample in data], groups


def _group_inputs(case, module: str):
    block, calls, masks, groups = case
    by_index = dict(enumerate(calls))
    inputs = TargetInputs(by_index, by_index, masks)
    return list(gather_group_inputs(block, groups[module], (block, block), inputs, range(len(calls))))


def test_enter_gives_what_the_linears_read(case) -> None:
    block, calls, _, groups = case
    x, args, kwargs = enter(block, groups["mlp"], calls[0])
    assert torch.equal(x, args[0])
    assert not kwargs
    down, _, _ = enter(block, groups["mlp.down_proj"], calls[0])
    with torch.no_grad():
        assert_close(block.mlp.down_proj(down), block.mlp(x), terms_of(block.mlp))


def test_a_call_that_runs_past_is_told(case) -> None:
    block, calls, _, _ = case
    block.aside = nn.Linear(64, 64)
    with pytest.raises(NotReached, match="aside"):
        enter(block, Group(("aside",), "aside", None, (-1,) * 64), calls[0])
    del block.aside


def test_attention_mixes_tokens_and_the_mlp_does_not(case) -> None:
    block, *_, groups = case
    assert not is_tokenwise(block, groups["self_attn"], _group_inputs(case, "self_attn")[0])
    assert is_tokenwise(block, groups["mlp.down_proj"], _group_inputs(case, "mlp.down_proj")[0])
    assert len(_group_inputs(case, "self_attn")) == 5
    assert len(_group_inputs(case, "mlp")) == 1


@pytest.mark.parametrize("module", ["self_attn", "mlp", "mlp.down_proj"])
def test_run_is_the_modules_own_output(case, module: str) -> None:
    block, calls, _, groups = case
    outputs: list[Tensor] = []
    handle = block.get_submodule(module).register_forward_hook(
        lambda *a: outputs.append(a[-1][0] if isinstance(a[-1], tuple) else a[-1])
    )
    for call in calls:
        forward(block, call)
    handle.remove()
    with torch.no_grad():
        ours = [run(block, groups[module], entered, entered.hidden) for entered in _group_inputs(case, module)]
    wanted = torch.cat([output.reshape(-1, 64) for output in outputs])
    assert_close(torch.cat([output.reshape(-1, 64) for output in ours]), wanted, terms_of(block))


def test_run_takes_other_weights_without_changing_the_block(case) -> None:
    block, _, _, groups = case
    entered = _group_inputs(case, "mlp")[0]
    before = block.mlp.up_proj.weight.clone()
    with torch.no_grad():
        plain = run(block, groups["mlp"], entered, entered.hidden)
        zeroed = run(block, groups["mlp"], entered, entered.hidden, {"mlp.up_proj": torch.zeros_like(before)})
    assert (zeroed == 0).all()
    assert (plain != 0).any()
    assert torch.equal(block.mlp.up_proj.weight, before)


def test_token_weights_come_back_by_sample(case) -> None:
    _, _, masks, _ = case
    (entered,) = _group_inputs(case, "mlp")
    entered.token_weights = torch.arange(float(entered.mask.numel())).reshape(entered.mask.shape)
    weights = entered.first_sequence_weights()
    assert list(weights) == [0, 1, 2, 3, 4]
    assert [len(w) for w in weights.values()] == [mask.shape[1] for mask in masks]
    assert weights[1][0] == masks[0].shape[1]


def test_a_tower_whose_tokens_have_no_batch_dimension() -> None:
    model, processor = build("qwen2_5_vl")
    block, calls, outputs = model.model.visual.blocks[0], [], {}
    hooks = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(LayerInputs(args, kwargs)), with_kwargs=True
        ),
        *(
            block.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: outputs.update({name: out}))
            for name in ("attn.qkv", "mlp", "mlp.down_proj")
        ),
    ]
    with torch.no_grad():
        model(**samples(processor, 1)[0], use_cache=False)
    for hook in hooks:
        hook.remove()
    assert calls[0].args[0].ndim == 2
    groups = {group.module: group for group in find_groups(block, calls[0].args, calls[0].kwargs)}
    for name, output in outputs.items():
        (entered,) = gather_group_inputs(
            block, groups[name], (block, block), TargetInputs(calls, calls, [torch.ones(0, 0).bool()]), [0]
        )
        assert entered.hidden.ndim == 3
        assert is_tokenwise(block, groups[name], entered)
        with torch.no_grad():
            assert_close(run(block, groups[name], entered, entered.hidden)[0], output, terms_of(block))


def test_output_error_counts_real_tokens_only() -> None:
    error, b = OutputError(), torch.ones(1, 4, 2)
    a = b.clone()
    a[0, 0] = 3.0
    a[0, 3] = 99.0
    error.add(a, b, torch.tensor([[True, True, True, False]]))
    assert error.value == pytest.approx(8 / 6)


@pytest.mark.parametrize("module", ["self_attn", "mlp.down_proj"])
def test_streamed_inputs_are_the_gathered_ones(case, module: str) -> None:
    block, calls, masks, groups = case
    by_index = dict(enumerate(calls))
    inputs = TargetInputs(by_index, by_index, masks)

    def weigh(some):
        return [2.0 * one.mask for one in some]

    streamed = StreamedInputs(block, groups[module], (block, block), inputs, range(len(calls)), weigh)
    gathered = _group_inputs(case, module)
    for _ in range(2):  # every iteration runs the samples again
        found = list(streamed)
        assert len(found) == len(gathered)
        for one, kept in zip(found, gathered):
            assert torch.equal(one.hidden, kept.hidden)
            assert torch.equal(one.mask, kept.mask)
            assert torch.equal(one.token_weights, 2.0 * kept.mask)
            assert (one.samples, one.lengths) == (kept.samples, kept.lengths)
        assert streamed.num_tokens == sum(int(mask.sum()) for mask in masks)


def test_streamed_inputs_tell_which_sample_is_not_finite(case) -> None:
    block, calls, masks, groups = case
    by_index = dict(enumerate(calls))
    broken = LayerInputs((torch.full_like(calls[3].args[0], torch.nan), *calls[3].args[1:]), calls[3].kwargs)
    inputs = TargetInputs(by_index, by_index | {3: broken}, masks)

    def weigh(some):
        return [one.mask.float() for one in some]

    streamed = StreamedInputs(block, groups["mlp.down_proj"], (block, block), inputs, range(len(calls)), weigh)
    with pytest.raises(NotFinite) as found:
        list(streamed)
    assert found.value.sample == 3


def test_a_tensor_that_is_also_an_argument_is_kept_once(case) -> None:
    one = _group_inputs(case, "self_attn")[0]
    given = [*one.args, *one.kwargs.values()]
    assert any(x is one.hidden for x in given)
