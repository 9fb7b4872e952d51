"""A stack of experts in calibration: its slices, all tokens for all experts, token weights, the learned recipe."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from tests.experts import build
from tests.families import conversations, save
from transformers_qaig import QAIGConfig
from transformers_qaig.calibration.decisions import BlockDecisions, cast_like, in_float32, rounded
from transformers_qaig.calibration.experts import Moments, StackStep
from transformers_qaig.calibration.group_context import GroupContext
from transformers_qaig.config.recipes import RECIPES
from transformers_qaig.distributed import Terms
from transformers_qaig.equalization.fold import Group
from transformers_qaig.execution import routed_rows
from transformers_qaig.execution.routed_rows import RoutedRows
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.nn.experts import QAIGExperts
from transformers_qaig.nn.experts_module import LinearExperts
from transformers_qaig.rounding.hessian import Hessian

SETTINGS = {"bits": 3, "group_size": 32, "dataset": conversations(12), "modules_to_not_convert": ["self_attn"]}


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3_vl_moe")
    save("qwen3_vl_moe", folder, torch.bfloat16)
    return folder


def quantized(folder: Path, **settings: Any) -> nn.Module:
    config = QAIGConfig(**{**SETTINGS, **settings})
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config)


def packed(model: nn.Module) -> dict[str, torch.Tensor]:
    stacks = {path: module for path, module in model.named_modules() if isinstance(module, QAIGExperts)}
    return {f"{path}.{name}": t for path, stack in stacks.items() for name, t in stack.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = packed(one), packed(other)
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.fixture(scope="module")
def by_default(vlm: Path) -> nn.Module:
    return quantized(vlm)


def test_packed_bits_do_not_depend_on_the_memory_for_moments(
    vlm: Path, by_default: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, slices = [], StackStep._slices
    monkeypatch.setattr(StackStep, "_slices", lambda *args: (sizes.append(len(part)) or part for part in slices(*args)))
    assert same(quantized(vlm, calibration={"expert_memory": "1B"}), by_default)
    assert set(sizes) == {1}
    sizes.clear()
    assert same(quantized(vlm, calibration={"expert_memory": "200KB"}), by_default)
    assert max(sizes) > 1


def step_of(memory: int) -> StackStep:
    """For four experts of 64 channels, whose moments take 16 KB each."""
    block = build("mixtral").model.layers[0]
    block.experts = LinearExperts.of(block.mlp.experts)
    plan = {f"experts.{name}": WeightScheme(4, 32) for name, module in block.experts.named_modules() if "_" in name}
    group = Group((), "", None, ())
    context = GroupContext(block, group, plan, Terms([]), RECIPES["gptq"], torch.bfloat16, foldable=False)
    return StackStep("experts", context, memory)


def test_one_slice_of_moments_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alive, held, gather = weakref.WeakSet[Moments](), [], StackStep._moments

    def gathered(*args: Any) -> dict[int, Moments]:
        held.append(len(alive))
        found = gather(*args)
        alive.update(found.values())
        return found

    monkeypatch.setattr(StackStep, "_moments", gathered)
    monkeypatch.setattr(Moments, "join", lambda *_: pytest.fail("every expert has tokens enough"))
    hidden = torch.randn(800, 64)
    weights, index = torch.rand(800, 4).topk(2)
    step = step_of(1)
    step(RoutedRows(hidden, hidden, torch.ones(800), index, weights), BlockDecisions(step.context.schemes))
    assert held == [0] * 8  # four slices before the down projections, four of those


def test_the_mean_of_a_stack_takes_the_place_of_an_expert() -> None:
    step = step_of(3 * 4 * 64**2)
    layout = step.context.block.experts.stack
    assert [len(part) for part in step._slices(("gate_proj", "up_proj"), layout)] == [3, 1]
    step.averaged = [1]
    assert [len(part) for part in step._slices(("gate_proj", "up_proj"), layout)] == [2, 2]


def test_all_experts_see_all_tokens_if_asked(vlm: Path) -> None:
    few = {"dataset": conversations(3), "recipe": "gptq"}
    routed, everywhere = (quantized(vlm, **few, calibration={"moe_calibrate_all_experts": on}) for on in (False, True))
    assert not same(everywhere, routed)
    assert averaged(routed) > 0
    assert averaged(everywhere) == 0
    assert all(target.error < 1 for target in everywhere.qaig_report.targets)


def averaged(model: nn.Module) -> int:
    return sum(sum(target.averaged.values()) for target in model.qaig_report.targets)


def test_a_run_that_sends_all_tokens_everywhere_cannot_go_on_as_another(vlm: Path, tmp_path: Path) -> None:
    quantized(vlm, calibration={"moe_calibrate_all_experts": True, "work_dir": tmp_path})
    with pytest.raises(ValueError, match="different moe_calibrate_all_experts"):
        quantized(vlm, calibration={"work_dir": tmp_path})


def test_token_weights_weigh_the_tokens_of_experts(vlm: Path, by_default: nn.Module) -> None:
    for kind in ("balanced", "qig"):
        weighed = quantized(vlm, recipe={"name": "default", "token_weights": kind})
        assert not same(weighed, by_default)
        assert all(target.error < 0.5 for target in weighed.qaig_report.targets)


@pytest.mark.slow
def test_learned_experts_are_better_than_those_of_gptq(vlm: Path) -> None:
    """`default` uses the held-back quarter too, which counts where experts have the tokens of 12 samples."""
    learned, plain = quantized(vlm, recipe={"name": "best", "steps": 20}), quantized(vlm, recipe="gptq")
    for ours, theirs in zip(learned.qaig_report.targets, plain.qaig_report.targets):
        assert any("learned" in step for step in ours.accepted), ours.path
        assert ours.error < 0.85 * theirs.error, ours.path


def rows(count: int = 40, *, all_experts: bool = False) -> RoutedRows:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, 8, generator=generator)
    weights, index = torch.rand(count, 4, generator=generator).topk(2)
    lambdas = torch.rand(count, generator=generator) * (torch.arange(count) % 5 > 0)
    return RoutedRows(hidden, hidden + 0.1, lambdas, index, weights, all_experts)


@pytest.mark.parametrize("all_experts", [False, True])
def test_chunks_hold_the_tokens_of_all_rows(monkeypatch: pytest.MonkeyPatch, all_experts: bool) -> None:
    whole = rows(all_experts=all_experts)
    expected = [whole.of(expert) for expert in range(4)]
    monkeypatch.setattr(routed_rows, "CHUNK", 7)
    chunks = list(whole.chunks(torch.device("cpu")))
    for expert, (tokens, counts) in enumerate(expected):
        found = [(chunk.hidden[chunk.of(expert)[0]], chunk.of(expert)[1]) for chunk in chunks]
        assert torch.equal(torch.cat([hidden for hidden, _ in found]), whole.hidden[tokens])
        assert torch.equal(torch.cat([lambdas for _, lambdas in found]), counts)
    assert whole.counts(4) == [len(tokens) for tokens, _ in expected]


def test_a_token_of_weight_zero_is_none_of_an_experts() -> None:
    """So Llama 4's experts are, which get a row of zeros for every token that is not theirs."""
    whole = rows()
    before = whole.counts(4)
    whole.weights[torch.tensor([1, 2]), 0] = 0.0
    first, second = whole.index[1:3, 0].tolist()
    assert whole.counts(4) == [count - (expert == first) - (expert == second) for expert, count in enumerate(before)]


@pytest.mark.parametrize(("recipe", "damping"), [("default", 0.01 * (1 + 4 * 32 / 64)), ("gptq", 0.01)])
def test_few_tokens_are_damped_more_and_their_shift_counts_less(recipe: str, damping: float) -> None:
    x, x_q = torch.randn(64, 32), torch.randn(64, 32)
    moments = Moments()
    moments.add(x, x_q, torch.ones(64), with_shift=True)
    solved = moments.solved(context_of(recipe))
    assert solved is not None
    expected = Hessian.of(x_q.T @ x_q / 64, damping=damping)
    torch.testing.assert_close(solved.hessian.factor, expected.factor)
    torch.testing.assert_close(solved.shift, x_q.T @ (x - x_q) / 64 / (1 + 32 / 64))


def context_of(recipe: str) -> GroupContext:
    group = Group((), "", None, ())
    return GroupContext(nn.Module(), group, {}, Terms([]), RECIPES[recipe], torch.bfloat16, foldable=False)


def test_weights_whose_squares_are_zero_raise_nothing() -> None:
    moments = Moments()
    moments.add(torch.randn(4, 16), torch.randn(4, 16), torch.full((4,), 1e-30), with_shift=True)
    solved = moments.solved(context_of("default"))
    assert solved is not None
    assert not solved.shift.any()


def test_a_token_counts_as_much_as_its_routing_weight() -> None:
    whole = rows()
    tokens, counts = whole.of(1)
    assert len(tokens) > 5
    routed = torch.where(whole.index == 1, whole.weights, 0.0).sum(1)
    assert torch.equal(counts, (whole.token_weights * routed)[tokens])


def test_the_input_shift_is_shrunk_where_few_tokens_count() -> None:
    """By n / (n + K): 16 tokens on 16 channels give half of it, 64 tokens four fifths."""
    block = nn.Module()
    context = GroupContext(
        block, Group((), "", None, ()), {}, Terms([]), RECIPES["default"], torch.bfloat16, foldable=False
    )
    x_q, difference = torch.randn(2, 17, 16)
    weights = torch.cat([torch.ones(16), torch.full((1,), 1e-6)])
    moments, every = Moments(), Moments()
    moments.add(x_q + difference, x_q, weights, with_shift=True)
    for _ in range(4):
        every.join(moments)
    for found, share in ((moments, 0.5), (every, 0.8)):
        solved = found.solved(context)
        assert solved is not None
        torch.testing.assert_close(solved.shift, share * x_q[:16].T @ difference[:16] / 16, rtol=1e-4, atol=1e-5)


def test_padding_counts_for_no_expert() -> None:
    for all_experts in (False, True):
        whole = rows(all_experts=all_experts)
        for expert in range(4):
            assert not (whole.of(expert)[0] % 5 == 0).any()


def test_copies_of_a_block_share_the_weights_of_its_experts_and_leave_them_alone() -> None:
    """A copy in fp32 would take 45 GB where a block has 256 experts of 7,168 channels."""
    block = build("mixtral", torch.bfloat16).model.layers[0]
    block.mlp.experts = LinearExperts.of(block.mlp.experts)
    path = "mlp.experts.1.down_proj"
    weight, before = block.get_parameter(f"{path}.weight"), block.get_parameter(f"{path}.weight").clone()
    copied = in_float32(block)
    assert copied.get_parameter(f"{path}.weight") is weight
    assert copied.self_attn.q_proj.weight.dtype == torch.float32
    decisions = BlockDecisions({path: WeightScheme(2, 32)})
    changed = cast_like(rounded(copied, decisions, [path], torch.bfloat16), block)
    assert not torch.equal(changed.get_parameter(f"{path}.weight"), before)
    assert torch.equal(weight, before)
    x = torch.randn(3, block.mlp.experts.stack.hidden_size)
    inputs = x, torch.tensor([[0], [1], [1]]), torch.ones(3, 1)
    assert torch.equal(copied.mlp.experts(*inputs), block.float().mlp.experts(*inputs))
