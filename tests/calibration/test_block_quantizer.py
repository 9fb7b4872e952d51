"""A block's way through the steps: what is accepted, what is rejected, and that the outcome is what was validated."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import seeds
from tests.families import build, samples
from transformers_qaig.calibration import group_context, steps
from transformers_qaig.calibration.block_quantizer import BlockQuantizer, QuantizerSettings
from transformers_qaig.calibration.decisions import BlockDecisions, in_float32, rounded, rounding_errors
from transformers_qaig.calibration.group_context import GroupContext
from transformers_qaig.calibration.reconstruction import BlockReconstruction
from transformers_qaig.calibration.steps import passes
from transformers_qaig.calibration.target_quantizer import quantize_block
from transformers_qaig.config.recipes import Recipe, recipe_of
from transformers_qaig.equalization.finder import GroupFinder
from transformers_qaig.execution.block_outputs import OutputError
from transformers_qaig.execution.held_back import VALIDATION_EVERY
from transformers_qaig.execution.layer_inputs import LayerInputs, TargetInputs, forward
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.nn.linear import QAIGLinear
from transformers_qaig.rounding.damping import Damping
from transformers_qaig.rounding.hessian import DAMPING
from transformers_qaig.rounding.learned import Learned
from transformers_qaig.rounding.moments import InputMoments
from transformers_qaig.structure import find_decoder_blocks, shared_parameters
from transformers_qaig.token_weights.base import BlockWeights
from transformers_qaig.token_weights.registry import token_weights_of

PATH = "model.language_model.layers.0"


class Case:
    def __init__(self) -> None:
        self.model, processor = build("llava")
        self.model.requires_grad_(False)
        self.block = next(iter(find_decoder_blocks(self.model).values()))
        calls: list[LayerInputs] = []
        handle = self.block.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(LayerInputs(args, kwargs)), with_kwargs=True
        )
        data = samples(processor, 8)
        with torch.no_grad():
            for sample in data:
                self.model(**sample, use_cache=False)
        handle.remove()
        self.damping_weights: BlockWeights | None = {}
        generator = seeds.generator()
        self.calls = dict(enumerate(calls))
        self.calls_q = {s: self._disturbed(call, generator) for s, call in self.calls.items()}
        self.masks = [sample["attention_mask"].bool() for sample in data]
        self.schemes = {name: WeightScheme(2, 32) for name, m in self.block.named_modules() if isinstance(m, nn.Linear)}

    @staticmethod
    def _disturbed(call: LayerInputs, generator: torch.Generator) -> LayerInputs:
        x = call.args[0]
        noise = 0.05 * x.std() * torch.randn(x.shape, generator=generator)
        return LayerInputs((x + noise, *call.args[1:]), call.kwargs)

    def quantizer(self, recipe: Recipe, seed: int = 0) -> BlockQuantizer:
        return BlockQuantizer(self.block, PATH, self.schemes, self.inputs, self.settings(recipe, seed))

    def packed(self, recipe: Recipe) -> nn.Module:
        return quantize_block(self.block, PATH, self.schemes, self.inputs, self.settings(recipe)).module

    @property
    def inputs(self) -> TargetInputs:
        return TargetInputs(self.calls, self.calls_q, self.masks)

    def settings(self, recipe: Recipe, seed: int = 0) -> QuantizerSettings:
        finder = GroupFinder(shared_parameters(self.model), 0)
        return QuantizerSettings(
            recipe, finder, token_weights_of(recipe), damping_weights=self.damping_weights, seed=seed
        )

    def error(self, block: nn.Module, held: bool | None = None) -> float:
        error = OutputError()
        for s, call in self.calls.items():
            if held is None or held == (s % VALIDATION_EVERY == 0):
                error.add(forward(block, self.calls_q[s]), forward(self.block, call), self.masks[s])
        return error.value


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


def test_default_is_far_better_than_nearest_on_samples_held_back(case: Case) -> None:
    recipe = replace(recipe_of("default"), asymmetric=0.5)
    quantizer = case.quantizer(recipe)
    decisions = quantizer.decide()
    assert set(decisions.roundings) == set(case.schemes)
    assert not quantizer.summary.rejected
    block = rounded(in_float32(case.block), decisions, list(case.schemes), torch.float32)
    assert case.error(block, held=True) < 0.5 * case.error(case.packed(recipe_of("rtn")), held=True)


@pytest.mark.parametrize("recipe", ["fast", "default", "best", "gptq", "mbq", "authors"])
def test_what_is_packed_is_what_was_chosen(case: Case, recipe: str) -> None:
    chosen = recipe_of(recipe, {"steps": 10})
    decisions = case.quantizer(chosen).decide()
    dense = rounded(in_float32(case.block), decisions, list(case.schemes), torch.float32)
    packed = case.packed(chosen)
    for name, module in packed.named_modules():
        if isinstance(module, QAIGLinear):
            assert torch.equal(module.dequantize(torch.float32), dense.get_submodule(name).weight)
    assert case.error(packed) == pytest.approx(case.error(dense), rel=1e-3)


def test_groups_with_a_wide_weight_are_not_equalized(case: Case) -> None:
    recipe = replace(recipe_of("fast"), validate=False)
    plain = [group.linears for group, _ in case.quantizer(recipe).decide().scales]
    wide = copy.copy(case)
    wide.schemes = {**case.schemes, "mlp.up_proj": WeightScheme(recipe.equalization_bits + 1, 32)}
    scaled = [group.linears for group, _ in wide.quantizer(recipe).decide().scales]
    assert len(plain) >= 3
    assert scaled == [linears for linears in plain if "mlp.up_proj" not in linears]
    assert len(scaled) < len(plain)


def test_scales_are_folded_before_codes_are_chosen(case: Case) -> None:
    recipe = replace(recipe_of("default"), equalization="mae", equalize_gqa=True, validate=False)
    assert len(passes(recipe)) == 2
    decisions = case.quantizer(recipe).decide()
    assert decisions.scales
    assert decisions.roundings
    block = rounded(in_float32(case.block), decisions, list(case.schemes), torch.float32)
    assert case.error(block) < 0.6 * case.error(case.packed(recipe_of("rtn")))
    # Seen from the block as it was, the same error.
    plain = copy.deepcopy(case.block)
    for name, error in rounding_errors(in_float32(case.block), decisions, torch.float32).items():
        plain.get_submodule(name).weight.data += error
    assert case.error(plain) == pytest.approx(case.error(block), rel=1e-2)
    with pytest.raises(AssertionError):
        decisions.with_scale(decisions.scales[0][0], decisions.scales[0][1])


def test_a_step_that_does_harm_is_rejected(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ruin:
        name, rounds = "ruin", True

        def __call__(self, context: GroupContext, decisions: BlockDecisions) -> BlockDecisions:
            roundings = {}
            for name in context.members:
                weight: Tensor = context.block.get_submodule(name).weight.data
                rounding = decisions.rounding(name, weight, context.dtype)
                roundings[name] = replace(rounding, codes=3 - rounding.codes)
            return decisions.with_roundings(roundings)

    monkeypatch.setattr(steps, "gptq", Ruin())
    quantizer = case.quantizer(recipe_of("default"))
    decisions = quantizer.decide()
    assert not decisions.roundings
    assert not quantizer.summary.accepted
    assert len(quantizer.summary.rejected) == 4
    assert "ruin" in quantizer.summary.rejected[0]


def test_a_damping_is_chosen_by_enough_tokens_that_are_no_pictures(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    masses: list[float] = []

    def choose(weights: Any, grids: Any, calibration: Any, held_back: InputMoments, *rest: Any) -> Damping:
        masses.append(float(held_back.mass))
        return Damping(0.1, 0.3)

    monkeypatch.setattr(group_context, "choose_damping", choose)
    held = range(0, 8, VALIDATION_EVERY)
    for kept in (1.0, 0.0):
        weights = {
            case.block: {s: torch.cat([mask[:, :40], kept * mask[:, 40:]], 1) for s, mask in enumerate(case.masks)}
        }
        monkeypatch.setattr(case, "damping_weights", weights)
        quantizer = case.quantizer(recipe_of("default"))
        rounded_so = quantizer.decide().roundings
        assert quantizer.summary.damping == {name: [0.1, 0.3] for name in rounded_so}
    tokens = sum(int(case.masks[s].sum()) for s in held)
    few = sum(int(case.masks[s][:, :40].sum()) for s in held)
    assert masses == [tokens] * 4 + [few] * 4


def test_few_held_back_tokens_choose_no_damping(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_context, "choose_damping", lambda *_: pytest.fail("chosen by too few tokens"))
    monkeypatch.setattr(case, "damping_weights", {case.block: {s: 0.0 * mask for s, mask in enumerate(case.masks)}})
    quantizer = case.quantizer(recipe_of("default"))
    assert quantizer.decide().roundings
    assert set(map(tuple, quantizer.summary.damping.values())) == {(DAMPING, DAMPING)}
    monkeypatch.setattr(case, "damping_weights", None)
    assert case.quantizer(recipe_of("default")).decide().roundings


def test_learning_keeps_what_is_better_and_is_the_same_for_a_seed(case: Case) -> None:
    recipe = replace(recipe_of("best"), steps=20)
    one, two = (case.quantizer(recipe, seed=1).decide() for _ in range(2))
    for name in case.schemes:
        assert torch.equal(one.roundings[name].codes, two.roundings[name].codes)
        assert torch.equal(one.roundings[name].grid.scale, two.roundings[name].grid.scale)
    quantizer = case.quantizer(recipe)
    decisions = quantizer.decide()
    assert sum("learned" in what for what in quantizer.summary.accepted + quantizer.summary.rejected) == 2
    learned = rounded(in_float32(case.block), decisions, list(case.schemes), torch.float32)
    assert decisions.parameters
    before_learning = case.quantizer(recipe)
    before_learning._learn = lambda decisions: decisions  # type: ignore[method-assign]
    before = rounded(in_float32(case.block), before_learning.decide(), list(case.schemes), torch.float32)
    better = any("learned" in what for what in quantizer.summary.accepted)
    assert better == (case.error(learned, held=True) < 0.9999 * case.error(before, held=True))
    assert case.error(learned, held=True) <= 1.001 * case.error(before, held=True)


def test_learning_that_is_not_kept_says_so(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for what, best in (("rounding", 1.5), ("scales", 1.25)):
        found = Learned({}, 1.5, best)
        monkeypatch.setattr(BlockReconstruction, what, lambda _, decisions, *others, found=found: (decisions, found))
    quantizer = case.quantizer(recipe_of("best"))
    quantizer.decide()
    assert "learned rounding (not kept: no loss below 1.50e+00)" in quantizer.summary.rejected
    assert "learned scales 1.50e+00 → 1.25e+00" in quantizer.summary.accepted


class WithRouter(nn.Module):
    """A 16-bit block that keeps some of it in float32, as routers are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
        self.down = nn.Linear(64, 64, dtype=torch.bfloat16)
        self.gains = nn.Parameter(torch.rand(64) + 0.5)
        self.register_buffer("frequencies", torch.rand(64))

    def forward(self, x: Tensor) -> Tensor:
        gains = self.gains * self.frequencies.cos()
        assert gains.dtype == torch.float32
        return self.down((self.up(x).float() * gains).to(x.dtype))


@pytest.mark.parametrize("recipe", ["rtn", "fast", "default", "best"])
def test_what_a_16_bit_block_keeps_in_float32_stays_there(recipe: str) -> None:
    block = WithRouter().requires_grad_(False)
    calls = {s: LayerInputs((torch.randn(1, 64, 64).bfloat16(),), {}) for s in range(4)}
    inputs = TargetInputs(calls, calls, [torch.ones(1, 64, dtype=torch.bool)] * 4)
    settings = QuantizerSettings(
        recipe_of(recipe, {"steps": 20}), GroupFinder(shared_parameters(block), 0), token_weights_of(recipe_of(recipe))
    )
    schemes = dict.fromkeys(("up", "down"), WeightScheme(3, 32))
    result = quantize_block(block, "", schemes, inputs, settings).module
    assert torch.equal(result.frequencies, block.frequencies)
    assert result.down.weight_scale.dtype == result.down.bias.dtype == torch.bfloat16
    if recipe == "best":  # learned, and not rounded to 16 bits
        assert not torch.equal(result.gains, result.gains.bfloat16().float())
    else:
        assert torch.equal(result.gains, block.gains)
