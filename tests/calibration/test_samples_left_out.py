"""Inside one block: what is not finite is told where it is first seen, and decides nothing."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.calibration.test_block_quantizer import PATH, Case
from transformers_qaig.calibration import steps
from transformers_qaig.calibration.decisions import BlockDecisions
from transformers_qaig.calibration.group_context import GroupContext
from transformers_qaig.calibration.target_quantizer import decide
from transformers_qaig.config.recipes import recipe_of
from transformers_qaig.execution.block_outputs import OutputError
from transformers_qaig.execution.exclusions import NotFinite
from transformers_qaig.execution.layer_inputs import LayerInputs, TargetInputs
from transformers_qaig.rounding.clipping import search_clipping
from transformers_qaig.rounding.hessian import Hessian
from transformers_qaig.rounding.learned import LearnableVector, learn
from transformers_qaig.rounding.quant_grid import QuantizedWeight, minmax_grid
from transformers_qaig.rounding.scale_refit import refit_scales
from transformers_qaig.token_weights.base import SubBlock
from transformers_qaig.token_weights.uniform import Uniform

NAN = float("nan")
GRID = {"bits": 2, "group_size": 32, "sym": False, "storage_dtype": torch.float32}


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


def spoilt(call: LayerInputs, token: int) -> LayerInputs:
    x = call.args[0].clone()
    x[0, token] = NAN
    return LayerInputs((x, *call.args[1:]), call.kwargs)


@pytest.mark.parametrize("recipe", ["default", "paper", "authors", "best"])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("bad", [4, 5])  # the first of them validates
def test_the_block_is_begun_anew_without_the_sample(case: Case, recipe: str, quantized: bool, bad: int) -> None:
    both = dict(case.calls), dict(case.calls_q)
    both[quantized][bad] = spoilt(both[quantized][bad], -1)
    found: dict[int, str] = {}

    def exclude_samples(samples: dict[int, str]) -> None:
        found.update(samples)
        for sample in samples:
            del both[0][sample], both[1][sample]

    settings = case.settings(recipe_of(recipe, {"steps": 10}))
    decisions, summary = decide(
        case.block, PATH, case.schemes, TargetInputs(*both, case.masks, exclude_samples), settings
    )
    assert list(found) == [bad]
    assert found[bad].endswith(f" in {PATH}")
    assert summary.left_out == list(found.items())
    calls, calls_q = ({s: c for s, c in each.items() if s != bad} for each in (case.calls, case.calls_q))
    again = case.settings(settings.recipe)
    expected, wanted = decide(case.block, PATH, case.schemes, TargetInputs(calls, calls_q, case.masks), again)
    assert settings.token_weights.state() == again.token_weights.state()
    assert (summary.accepted, summary.rejected) == (wanted.accepted, wanted.rejected)
    assert decisions.roundings.keys() == expected.roundings.keys()
    for name, rounding in decisions.roundings.items():
        assert torch.equal(rounding.codes, expected.roundings[name].codes)
    for (_, scale), (_, other) in zip(decisions.scales, expected.scales, strict=True):
        assert torch.equal(scale, other)


@pytest.mark.parametrize("recipe", ["default", "fast"])
def test_padding_may_be_anything(case: Case, recipe: str) -> None:
    masks = [mask.clone() for mask in case.masks]
    masks[5][0, 0] = False
    stages = replace(recipe_of(recipe), equalization="none", validate=False)
    # Later tokens see the first one here, whatever the mask says: so only what stands before attention is looked at.
    schemes = {name: scheme for name, scheme in case.schemes.items() if name == "self_attn.q_proj"}
    found = []
    for spoil in (lambda call: call, lambda call: spoilt(call, 0)):
        calls, calls_q = ({**each, 5: spoil(each[5])} for each in (case.calls, case.calls_q))
        found.append(decide(case.block, PATH, schemes, TargetInputs(calls, calls_q, masks), case.settings(stages))[0])
    weight = case.block.get_submodule("self_attn.q_proj").weight
    plain, padded = (decisions.rounding("self_attn.q_proj", weight, torch.float32) for decisions in found)
    assert torch.equal(plain.codes, padded.codes)
    assert torch.equal(plain.grid.scale, padded.grid.scale)


def test_a_candidate_whose_output_is_not_finite_is_rejected(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ruin:
        name, rounds = "ruin", True

        def __call__(self, context: GroupContext, decisions: BlockDecisions) -> BlockDecisions:
            roundings = {}
            for name in context.members:
                rounding = decisions.rounding(name, context.block.get_submodule(name).weight.data, context.dtype)
                roundings[name] = replace(rounding, grid=replace(rounding.grid, scale=rounding.grid.scale * NAN))
            return decisions.with_roundings(roundings)

    monkeypatch.setattr(steps, "gptq", Ruin())
    quantizer = case.quantizer(recipe_of("default"))
    assert not quantizer.decide().roundings
    assert not quantizer.summary.accepted
    assert all("is not finite" in what for what in quantizer.summary.rejected)


def test_token_weights_that_are_not_finite_name_their_sample(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def weigh(_: Uniform, sub_block: SubBlock) -> list[Tensor]:
        found = []
        for inputs in sub_block.inputs:
            weights, ends = inputs.mask.float(), torch.tensor(inputs.lengths).cumsum(0).tolist()
            if 6 in inputs.samples:
                weights.view(-1)[ends[inputs.samples.index(6)] - 1] = NAN
            found.append(weights)
        return found

    monkeypatch.setattr(Uniform, "weigh", weigh)
    with pytest.raises(NotFinite, match="sample 6: NaN or Inf in the token weights at self_attn"):
        case.quantizer(recipe_of("default")).decide()


def test_an_error_that_is_not_finite_is_not_added() -> None:
    error, mask = OutputError(), torch.ones(1, 2, dtype=torch.bool)
    good, bad = torch.ones(1, 2, 3), torch.full((1, 2, 3), NAN)
    assert error.add(2 * good, good, mask)
    assert not error.add(bad, good, mask)
    assert not error.add(good, bad, mask)
    assert error.add(bad, bad, ~mask)
    assert error.value == 1.0


def test_no_range_is_chosen_by_an_error_that_is_not_finite(caplog: pytest.LogCaptureFixture) -> None:
    weight = torch.randn(4, 64)
    moments = torch.eye(32).repeat(2, 1, 1)
    moments[1, 0, 0] = NAN
    clipping = search_clipping(weight, moments, layer="layers.0.q_proj", **GRID)
    assert (clipping.shrink[:, 1] == 1).all()
    assert (clipping.gain[:, 1] == 1).all()
    assert (clipping.shrink[:, 0] < 1).any()
    assert "Clipping of layers.0.q_proj: no range of some groups had a finite error" in caplog.text


def test_scales_stay_where_the_new_error_is_not_finite() -> None:
    weight = torch.randn(4, 64)
    grid = minmax_grid(weight, **GRID)
    moment = torch.full((64, 64), NAN)
    rounding = QuantizedWeight(grid, grid.encode(weight))
    refitted = refit_scales(weight, Hessian(moment, torch.arange(64), None), rounding, torch.float32)
    assert torch.equal(refitted.grid.scale, grid.scale)


def test_learning_leaves_a_start_that_is_not_finite() -> None:
    levels = iter([NAN, NAN, 1.0, NAN, 0.5])

    def loss(tensors: dict[str, Tensor], step: int) -> float:
        tensors["x"].sum().backward()
        return 0.0

    soft = {"x": LearnableVector(torch.ones(3), torch.float32)}
    found = learn(soft, loss, lambda tensors: next(levels), steps=4, rate=0.1, checks=4)
    assert found.best == 0.5
    assert found.is_better
