"""Rotated inputs, from the plan to the saved model: what is judged, kept, packed, recorded and loaded."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from tests.families import build, samples
from tests.lifecycle import FAST, logits, packed
from tests.tolerance import assert_close, terms_of
from transformers_qaig import QAIGConfig
from transformers_qaig.calibration import decisions as choosing
from transformers_qaig.calibration.block_quantizer import QuantizerSettings
from transformers_qaig.calibration.decisions import BlockDecisions, rounded, rounding_errors
from transformers_qaig.calibration.pipeline import calibrate
from transformers_qaig.calibration.reconstruction import BlockReconstruction
from transformers_qaig.calibration.target_quantizer import decide
from transformers_qaig.config.recipes import Recipe, recipe_of
from transformers_qaig.data.loader import load_inputs
from transformers_qaig.equalization.finder import GroupFinder
from transformers_qaig.execution.block_outputs import first_tensor
from transformers_qaig.execution.layer_inputs import LayerInputs, TargetInputs, forward
from transformers_qaig.formats.hadamard import Rotation, rotate, rotate_back
from transformers_qaig.formats.reference import round_activations
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.nn.linear import get_linear
from transformers_qaig.nn.transformed_input import TransformedInputLinear
from transformers_qaig.plan.build import make_plan
from transformers_qaig.structure import find_decoder_blocks, shared_parameters
from transformers_qaig.token_weights.registry import token_weights_of

ROTATION = Rotation(32, 5)


@pytest.fixture(scope="module")
def case():
    """A model, a block of it and its path, calls, and masks."""
    model, processor = build("llava")
    path, block = next(iter(find_decoder_blocks(model).items()))
    calls: dict[int, LayerInputs] = {}
    handle = block.register_forward_pre_hook(
        lambda _, args, kwargs: calls.update({len(calls): LayerInputs(args, kwargs)}), with_kwargs=True
    )
    data = samples(processor, 8)
    with torch.no_grad():
        for sample in data:
            model(**sample, use_cache=False)
    handle.remove()
    return model, path, block, calls, [sample["attention_mask"].bool() for sample in data]


def schemes_of(
    block: nn.Module, bits: int = 4, activation_bits: int = 16, rotation: Rotation | None = ROTATION
) -> dict[str, WeightScheme]:
    scheme = WeightScheme(bits, -1, rotation=rotation, activation_bits=activation_bits)
    return {name: scheme for name, module in block.named_modules() if isinstance(module, nn.Linear)}


def rotated(block: nn.Module, activation_bits: int) -> BlockDecisions:
    return BlockDecisions(schemes_of(block, activation_bits=activation_bits))


def rotations(decisions: BlockDecisions) -> dict[str, Rotation]:
    return {name: scheme.rotation for name, scheme in decisions.schemes.items() if scheme.rotation is not None}


@pytest.mark.parametrize("activation_bits", [16, 8])
def test_the_block_that_is_judged_computes_what_the_packed_one_will(case, activation_bits) -> None:
    _, _, block, calls, _ = case
    decisions = rotated(block, activation_bits)
    dense = rounded(block, decisions, list(decisions.schemes), torch.float32)
    result = choosing.pack(copy.deepcopy(block), decisions, torch.float32)
    for name in decisions.schemes:
        assert isinstance(dense.get_submodule(name), TransformedInputLinear)
        assert result.get_submodule(name).activation_bits == activation_bits
    ours, theirs, full = (first_tensor(forward(b, calls[0])) for b in (dense, result, block))
    if activation_bits == 16:
        assert_close(ours, theirs, terms_of(block))
    else:  # an input halfway between two codes may go either way, and moves its outputs by a step
        assert (ours - theirs).norm() < 0.05 * (theirs - full).norm()


def test_eight_bit_inputs_are_part_of_what_is_judged_without_a_rotation_too(case) -> None:
    _, _, block, calls, _ = case
    plain, eight = (BlockDecisions(schemes_of(block, activation_bits=bits, rotation=None)) for bits in (16, 8))
    a, b = (
        first_tensor(forward(rounded(block, c, ["mlp.down_proj"], torch.float32), calls[0])) for c in (plain, eight)
    )
    assert not torch.equal(a, b)
    result = choosing.pack(copy.deepcopy(block), eight, torch.float32)
    alone = rounded(block, eight, ["mlp.down_proj"], torch.float32)
    x = torch.randn(3, 96)
    assert_close(alone.get_submodule("mlp.down_proj")(x), result.get_submodule("mlp.down_proj")(x), 96)


@pytest.mark.parametrize("activation_bits", [16, 8])
def test_learned_rounding_sees_the_inputs_as_they_will_be(case, activation_bits) -> None:
    """What it starts from is judged as the packed block would be."""
    _, _, block, calls, masks = case
    decisions = rotated(block, activation_bits)
    targets = {s: first_tensor(forward(block, call)) for s, call in calls.items()}
    weights = {s: mask.float() for s, mask in enumerate(masks)}
    _, found = BlockReconstruction(block, calls, targets, weights, [0, 4], 1, 0, torch.float32).rounding(decisions)
    dense, error, power = rounded(block, decisions, list(decisions.schemes), torch.float32), 0.0, 0.0
    for s, target in targets.items():
        difference = (first_tensor(forward(dense, calls[s])) - target).square().sum(-1)
        error += float((difference * weights[s]).sum()) if s in (0, 4) else 0.0
        power += float((target.square().sum(-1) * weights[s]).sum())
    tokens = sum(float(weights[s].sum()) for s in (0, 4)) / sum(float(w.sum()) for w in weights.values())
    assert found.start == pytest.approx(error / tokens / power, rel=1e-3)


def test_gradients_go_straight_through_the_rounding_of_inputs(case) -> None:
    decisions, x = rotated(case[2], 8), torch.randn(3, 64, requires_grad=True)
    inputs, grad = decisions.inputs(x, "mlp.up_proj"), torch.randn(3, 64)
    torch.testing.assert_close(inputs, round_activations(rotate(x, ROTATION)))
    torch.testing.assert_close(torch.autograd.grad(inputs, x, grad)[0], rotate_back(grad, ROTATION))


def test_rounding_errors_are_those_of_the_weights_in_their_own_basis(case) -> None:
    _, _, block, _, _ = case
    decisions = rotated(block, 16)
    result = choosing.pack(copy.deepcopy(block), decisions, torch.float32)
    for name, error in rounding_errors(block, decisions, torch.float32).items():
        expected = result.get_submodule(name).dequantize() - get_linear(block, name).weight
        weight = get_linear(block, name).weight
        assert_close(error, expected, 2 * ROTATION.block, magnitude=float(weight.abs().max()))


def settings_for(model: nn.Module, recipe: Recipe) -> QuantizerSettings:
    return QuantizerSettings(recipe, GroupFinder(shared_parameters(model), 0), token_weights_of(recipe))


def outliers(block: nn.Module) -> nn.Module:
    """The same function with one channel of the MLP's input, and of its hidden state, a hundred times as large."""
    block = choosing.folded(block, BlockDecisions({}))
    with torch.no_grad():
        block.post_attention_layernorm.weight[7] *= 100
        block.mlp.gate_proj.weight[:, 7] /= 100
        block.mlp.up_proj.weight[:, 7] /= 100
        block.mlp.up_proj.weight[40] *= 100
        block.mlp.down_proj.weight[:, 40] /= 100
    return block


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_rotation_is_kept_where_outliers_spoil_8_bit_inputs(case, rounding) -> None:
    model, path, block, calls, masks = case
    recipe = recipe_of("fast", {"rounding": rounding, "equalization": "none"})
    inputs, schemes = TargetInputs(calls, calls, masks), schemes_of(block, 8, activation_bits=8)
    decisions, summary = decide(outliers(block), path, schemes, inputs, settings_for(model, recipe))
    wide = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    assert wide <= set(rotations(decisions))
    assert "rotate mlp.gate_proj, mlp.up_proj" in summary.accepted
    assert rotations(decisions)["mlp.up_proj"] == ROTATION
    if rounding == "nearest":
        assert not decisions.roundings
    else:
        assert wide <= set(decisions.roundings)


def test_a_rotation_that_does_harm_is_undone(case) -> None:
    """Weights that lie on their grid as they are lose nothing, and a rotation takes them off it."""
    model, path, block, calls, masks = case
    block = choosing.folded(block, BlockDecisions({}))
    schemes = schemes_of(block)
    for name in schemes:
        weight = get_linear(block, name).weight
        weight.data = BlockDecisions(schemes).grid(name, weight.data, torch.float32).quantize(weight.data)
    recipe = recipe_of("fast", {"rounding": "nearest", "equalization": "none"})
    decisions, summary = decide(block, path, schemes, TargetInputs(calls, calls, masks), settings_for(model, recipe))
    assert not rotations(decisions)
    assert sum(what.startswith("rotate") for what in summary.rejected) == 4


def test_without_data_the_plan_is_what_is_done(case) -> None:
    model, path, block, _, _ = case
    schemes, inputs = schemes_of(block, activation_bits=8), TargetInputs({}, {}, [])
    decisions, _ = decide(block, path, schemes, inputs, settings_for(model, recipe_of("rtn")))
    assert decisions.schemes == schemes


def test_a_group_that_is_offered_different_rotations_has_none(case) -> None:
    model, path, block, calls, masks = case
    schemes = schemes_of(block, activation_bits=8)
    schemes["self_attn.k_proj"] = replace(schemes["self_attn.k_proj"], rotation=Rotation(32, 6))
    recipe = recipe_of("gptq", {"validate": False})
    decisions, _ = decide(block, path, schemes, TargetInputs(calls, calls, masks), settings_for(model, recipe))
    assert set(decisions.schemes) - set(rotations(decisions)) == {f"self_attn.{x}_proj" for x in "qkv"}


@pytest.mark.parametrize("recipe", ["rtn", "default", "best"])
def test_saved_and_loaded_bit_by_bit(llava: Path, tmp_path: Path, recipe: str) -> None:
    changed = {"name": recipe, "steps": 4, "rotation": "all"}
    config = QAIGConfig(bits=4, recipe=changed, activation_bits=8, seed=3, **{**FAST, "group_size": -1})
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    plan = model.config.quantization_config.plan
    for path in packed(model):
        assert plan[path] == model.get_submodule(path).scheme.to_dict()
    with_rotation = [path for path in plan if "rotation" in plan[path]]
    kept = sum(what.startswith("rotate") for block in model.qaig_report.targets for what in block.accepted)
    assert bool(with_rotation) == bool(kept) if recipe != "rtn" else len(with_rotation) == len(plan)
    ours = logits(model, llava)
    model.save_pretrained(tmp_path / "q")
    stored = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]["plan"]
    assert stored == plan
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "q")
    assert torch.equal(logits(again, llava), ours)
    dense = {path: again.get_submodule(path).dequantize() for path in plan}
    again.dequantize()
    assert all(torch.equal(again.get_submodule(path).weight, dense[path]) for path in plan)
    assert torch.corrcoef(torch.stack([logits(again, llava).flatten(), ours.flatten()]))[0, 1] > 0.99


def test_an_interrupted_run_remembers_what_was_rotated(llava: Path, tmp_path: Path) -> None:
    def quantize():
        recipe = {"rotation": "all", "validate": False}  # kept, whatever they are worth here
        config = QAIGConfig(bits=3, recipe=recipe, calibration={"work_dir": tmp_path}, **FAST)
        return AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)

    first = quantize()
    second = quantize()
    assert all(block.resumed for block in second.qaig_report.targets)
    assert second.config.quantization_config.plan == first.config.quantization_config.plan
    assert any("rotation" in entry for entry in first.config.quantization_config.plan.values())
    assert torch.equal(logits(second, llava), logits(first, llava))


def test_the_plan_that_is_given_to_calibration_is_left_as_it_was(llava: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(llava).requires_grad_(False)
    config = QAIGConfig(recipe={"rotation": "all"}, **FAST)
    plan, coverage = make_plan(model, config)
    before = dict(plan)
    report = calibrate(model, plan, coverage, load_inputs(model, config), config)
    assert plan == before
    assert all(scheme.rotation is not None for scheme in plan.values())
    assert not all(scheme.rotation is not None for scheme in report.plan.values())


def test_a_plan_for_another_width_is_refused(llava: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(llava)
    path = next(name for name, m in model.named_modules() if name.endswith("down_proj"))
    entry = {"bits": 4, "group_size": 32, "sym": False, "rotation": {"block": 64, "seed": 0}}
    config = QAIGConfig(plan={path: entry}, calibration={"min_coverage": 0.0}, **FAST)
    with pytest.raises(ValueError, match=r"down_proj.*block must be one of .* divides in_features=96"):
        AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
