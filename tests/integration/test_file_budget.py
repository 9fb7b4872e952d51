"""A budget for the whole file: tower, projector, head and embeddings compete with the language model's blocks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from tests.families import FAMILIES, build, conversations, save
from tests.integration.interrupted_costs import interrupt_second_measurement
from tests.integration.whole_model import are_tied_in_memory
from tests.lifecycle import FAST, logits
from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.config import CANDIDATES
from transformers_qaig.plan.allocate import reachable
from transformers_qaig.plan.build import list_schemes
from transformers_qaig.quantizer.bit_costs import measure
from transformers_qaig.quantizer.saving.file_headers import predict_headers
from transformers_qaig.structure import find_input_embeddings, find_lm_head

QUICK = ("llava", "gemma3", "qwen2_5_vl", "qwen3_vl_moe")
OUTSIDE = ["*vision_tower*", "*multi_modal_projector*", "*embed_tokens", "lm_head"]


def _quantize(folder: Path, **settings) -> nn.Module:
    config = QAIGConfig(**{**FAST, "recipe": "rtn", **settings})
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config)


def _size(folder: Path, share: float, candidates: tuple[int, ...] = CANDIDATES, **settings) -> int:
    """Bytes of a file this far between the smallest and the largest that can be."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    config = QAIGConfig(group_size=32, budget=BitBudget(size="1x", candidates=candidates), **settings)
    options, coverage = list_schemes(model, config)
    predict_headers(coverage, model, options)
    low, high = reachable(options)
    return int((coverage.other_bits + low + share * (high - low)) / 8)


def _saved(model: nn.Module, folder: Path) -> int:
    model.save_pretrained(folder)
    return (folder / "model.safetensors").stat().st_size


def _mean_bits(model: nn.Module, is_in_part: Callable[[str], bool], dense: int = 32) -> float:
    """Bits of the part's weights of a tiny model that is saved in float32, on average over weights."""
    plan = model.qaig_report.plan
    bits = [plan[path].bits if path in plan else dense for path in _weights(model) if is_in_part(path)]
    return sum(bits) / len(bits)


def _weights(model: nn.Module) -> list[str]:
    coverage = model.qaig_report.coverage
    return [*(path for path in model.qaig_report.plan if path not in coverage.outside_plan), *coverage.outside_choices]


@pytest.mark.parametrize("family", [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FAMILIES])
def test_every_family_fits_into_its_budget_and_reloads_bit_by_bit(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / "fp", torch.float32)
    least = {"calibration": {"min_coverage": 0.1}}
    size = _size(tmp_path / "fp", 0.1)
    model = _quantize(tmp_path / "fp", budget=BitBudget(size=size), **least)
    report = model.qaig_report
    saved = _saved(model, tmp_path / "q")
    assert 0.9 * size < saved <= size
    assert report.coverage.whole.saved == 8 * saved
    table, head = find_input_embeddings(model), find_lm_head(model)
    tied = family in ("gemma3", "internvl", "paligemma", "mistral3")
    assert (head.path in report.coverage.outside_choices) is not tied
    assert (report.coverage.outside_choices[table.path].also == head.path) is tied
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "q")
    assert torch.equal(logits(again, tmp_path / "fp"), logits(model, tmp_path / "fp"))
    if tied:
        assert report.plan.get(table.path) == report.plan.get(head.path)
        assert table.path not in report.plan or are_tied_in_memory(again)
    assert again.config.quantization_config.plan == model.config.quantization_config.plan


def test_a_ratio_is_to_bfloat16_whatever_the_checkpoint_has(llava: Path, tmp_path: Path) -> None:
    model = _quantize(llava, budget="1.5x")
    elements = sum(
        tensor.numel() for tensor in AutoModelForImageTextToText.from_pretrained(llava).state_dict().values()
    )
    assert 0.9 * 2 * elements / 1.5 < _saved(model, tmp_path) <= 2 * elements / 1.5
    assert model.config.quantization_config.budget == BitBudget(size="1.5x")


def _llava(folder: Path, change: Callable[[nn.Module], None]) -> Path:
    model, processor = build("llava")
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _blind(model: nn.Module) -> None:
    """Makes what the tower sees change little: the projector's bias drowns it."""
    projector = model.model.multi_modal_projector.linear_2
    projector.weight.mul_(1e-3)
    projector.bias.normal_()


def _without_mlp(model: nn.Module) -> None:
    """Makes the blocks' MLPs add little."""
    for layer in model.model.language_model.layers:
        layer.mlp.down_proj.weight.mul_(1e-4)


def test_what_matters_little_is_squeezed_be_it_tower_or_blocks(tmp_path: Path) -> None:
    blind, shallow = _llava(tmp_path / "blind", _blind), _llava(tmp_path / "shallow", _without_mlp)
    size = _size(blind, 0.05)
    found = [_quantize(folder, budget=BitBudget(size=size)) for folder in (blind, shallow)]
    tower = [_mean_bits(model, lambda path: "vision_tower" in path) for model in found]
    mlp = [_mean_bits(model, lambda path: "language_model" in path and ".mlp." in path) for model in found]
    assert tower[0] == 2 < mlp[0]
    assert mlp[1] == 2 < tower[1]


def test_a_whole_part_may_stay_as_it_is(tmp_path: Path) -> None:
    folder = _llava(tmp_path / "fp", _blind)
    model = _quantize(folder, budget=BitBudget(size=_size(folder, 0.7, (2,)), candidates=(2,)))
    coverage = model.qaig_report.coverage
    assert "lm_head" not in coverage.outside_plan
    assert coverage.unpacked["lm_head"] == model.lm_head.weight.numel()
    assert type(model.lm_head) is nn.Linear
    assert any("vision_tower" in path for path in coverage.outside_plan)
    assert 8 * _saved(model, tmp_path / "q") == coverage.whole.saved
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "q")
    assert torch.equal(logits(again, folder), logits(model, folder))


def test_nothing_outside_needs_to_be_there_to_choose_for(llava: Path, tmp_path: Path) -> None:
    size = _size(llava, 0.5, modules_to_not_convert=OUTSIDE)
    model = _quantize(llava, budget=BitBudget(size=size), modules_to_not_convert=OUTSIDE)
    assert not model.qaig_report.coverage.outside_choices
    assert 0.9 * size < _saved(model, tmp_path) <= size


def test_a_model_without_a_head_of_its_own_is_planned(llava: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(llava).model
    options, coverage = list_schemes(model, QAIGConfig(group_size=32, budget="2x"))
    assert "language_model.embed_tokens" in coverage.outside_choices
    assert not any("head" in path for path in options)


def test_what_is_fixed_does_not_compete(llava: Path) -> None:
    fixed = {
        "vision_bits": 5,
        "overrides": {"lm_head": 6},
        "modules_to_not_convert": ["*embed_tokens", "*vision_tower*layers.0.*"],
    }
    model = _quantize(llava, budget=BitBudget(size=_size(llava, 0.1, **fixed)), **fixed)
    plan, coverage = model.qaig_report.plan, model.qaig_report.coverage
    assert {scheme.bits for path, scheme in plan.items() if "vision_tower" in path or "projector" in path} == {5}
    assert not any("vision_tower" in path and "layers.0." in path for path in plan)
    assert plan["lm_head"].bits == 6
    assert find_input_embeddings(model).path not in plan
    assert not coverage.outside_choices


def test_a_ratio_out_of_reach_names_the_range(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measure_costs", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match=r"`budget='4x'` cannot be met: .* bytes, 1\.\d\dx to 0\.\d\dx, of which"):
        _quantize(llava, budget="4x")


def test_text_alone_does_not_say_what_the_tower_costs(llava: Path) -> None:
    settings = {"budget": "1.5x", "dataset": conversations(4, image=False)}
    with pytest.raises(ValueError, match=r"has a picture.*`vision_bits`"):
        _quantize(llava, **settings)
    assert _quantize(llava, **{**settings, "vision_bits": 4}).qaig_report.plan


def test_an_interrupted_measurement_resumes(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers_qaig.execution.targets.ROWS_PER_CHUNK", 96)  # the head takes two
    budget = BitBudget(size=_size(llava, 0.1, (3, 4)), candidates=(3, 4), cost="fisher")
    settings = {"budget": budget, "recipe": "fast"}
    expected = _quantize(llava, **settings)
    measured, decided = interrupt_second_measurement(monkeypatch)
    settings["calibration"] = {"work_dir": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        _quantize(llava, **settings)
    targets = list(decided)
    assert {"lm_head.0", "lm_head.96", "model.multi_modal_projector"} < set(targets)
    assert len(targets) == 2 * len(set(targets))  # both widths
    model = _quantize(llava, **settings)
    assert decided == targets
    assert len(measured) == 3
    assert torch.equal(logits(model, llava), logits(expected, llava))


def test_errors_outside_are_those_of_the_quantized_model(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing before is quantized, what is measured is what comes of it."""
    real, seen = measure.costs_of, dict[str, Tensor]()

    def look(run, errors, *arguments):
        seen.update({path: error.clone() for path, error in errors.items()})
        return real(run, errors, *arguments)

    monkeypatch.setattr(measure, "costs_of", look)
    dense = AutoModelForImageTextToText.from_pretrained(llava).state_dict()
    settings = {"recipe": "fast"}
    _quantize(llava, budget=BitBudget(size=_size(llava, 0.1, (4,)), candidates=(4,), cost="fisher"), **settings)
    quantized = _quantize(llava, bits=4, vision_bits=4, embedding_bits=4, lm_head_bits=4, **settings)
    quantized.dequantize()
    first = [path for path in seen if "layers.0." in path and "vision_tower" in path]
    assert len(first) == 6
    for path in [find_input_embeddings(quantized).path, *first]:
        found = dense[f"{path}.weight"] + seen[path]
        torch.testing.assert_close(found, quantized.get_submodule(path).weight.data, rtol=0, atol=1e-5)
    assert seen["lm_head"].shape == dense["lm_head.weight"].shape
