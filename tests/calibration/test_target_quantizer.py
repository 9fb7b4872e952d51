"""One target: quantized beside the model, measured on the samples, and then put in its place."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import seeds
from transformers_qaig import QAIGConfig
from transformers_qaig.calibration.quantizer_settings import QuantizerSettings, settings_of
from transformers_qaig.calibration.resume import BlockStore
from transformers_qaig.calibration.target_quantizer import advance, install, quantize_target
from transformers_qaig.config.recipes import recipe_of
from transformers_qaig.data.calibration_data import CalibrationData
from transformers_qaig.equalization.finder import GroupFinder
from transformers_qaig.execution import targets
from transformers_qaig.execution.layer_inputs import LayerInputs, TargetInputs
from transformers_qaig.execution.targets import Target
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.nn.embedding import QAIGEmbedding
from transformers_qaig.nn.linear import QAIGLinear

SCHEME = WeightScheme(3, 32)
CONFIG = QAIGConfig(recipe="rtn")
NOTHING = TargetInputs({}, {}, [])


def settings() -> QuantizerSettings:
    return settings_of(CONFIG, recipe_of("rtn"), GroupFinder((), 0))


@pytest.fixture
def model() -> nn.ModuleDict:
    torch.manual_seed(seeds.seed())
    block = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64))
    return nn.ModuleDict({"embed": nn.Embedding(64, 32), "block": block, "head": nn.Linear(32, 64)})


@pytest.fixture
def store(model: nn.ModuleDict) -> BlockStore:
    return BlockStore(CONFIG, {}, CalibrationData(), model)


def inputs(generator: torch.Generator) -> TargetInputs:
    calls = {s: LayerInputs((torch.randn(1, 5, 32, generator=generator),), {}) for s in range(2)}
    return TargetInputs(calls, calls, [torch.ones(1, 5, dtype=torch.bool)] * 2)


def test_the_model_stays_as_it_is_until_the_target_is_installed(model: nn.ModuleDict, store: BlockStore) -> None:
    block, before = model["block"], copy.deepcopy(model["block"].state_dict())
    given = inputs(seeds.generator())
    result = quantize_target(Target("block", block, "input_ids"), {"block.1": SCHEME}, given, settings(), store)
    errors = advance(result, given, None)
    assert type(block[1]) is nn.Linear
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())
    install(model, result)
    assert model["block"] is block, "parents and hooks refer to it"
    assert isinstance(block[1], QAIGLinear)
    assert result.schemes == {"block.1": SCHEME}
    summary = result.summary(errors)
    assert 0 < summary.error < 1
    assert summary.path == "block"


def test_a_linear_is_quantized_some_rows_at_a_time(
    model: nn.ModuleDict, store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "ROWS_PER_CHUNK", 32)
    given, head = inputs(seeds.generator()), copy.deepcopy(model["head"])
    result = quantize_target(Target("head", model["head"], ""), {"head": SCHEME}, given, settings(), store)
    install(model, result)
    assert len(result.chunks) == 2
    assert result.schemes == {"head": SCHEME}
    whole = QAIGLinear.like(head, SCHEME)
    assert model["head"].weight_packed.shape == whole.weight_packed.shape
    assert (model["head"].dequantize() - head.weight).abs().max() < 0.1  # weights reach 0.17


def test_embeddings_need_no_samples(model: nn.ModuleDict, store: BlockStore) -> None:
    result = quantize_target(Target("embed", model["embed"], ""), {"embed": SCHEME}, NOTHING, settings(), store)
    install(model, result)
    assert isinstance(model["embed"], QAIGEmbedding)
    assert result.schemes == {"embed": SCHEME}


def test_a_sample_whose_output_is_not_finite_is_left_out(model: nn.ModuleDict, store: BlockStore) -> None:
    given, left_out = inputs(seeds.generator()), {}
    given.full[1].args[0][0, 2] = torch.inf
    watched = TargetInputs(given.full, given.full, given.masks, left_out.update)
    result = quantize_target(Target("block", model["block"], ""), {"block.1": SCHEME}, NOTHING, settings(), store)
    advance(result, watched, None)
    assert left_out == {1: "the full-precision output of block"}


def test_a_kept_block_is_read_and_not_quantized_again(
    model: nn.ModuleDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = QAIGConfig(recipe="rtn", calibration={"work_dir": tmp_path})
    target, plan, given = Target("block", model["block"], ""), {"block.1": SCHEME}, inputs(seeds.generator())
    unquantized = copy.deepcopy(model)
    with BlockStore(config, plan, CalibrationData(), model) as store:
        result = quantize_target(target, plan, given, settings(), store)
        store.keep(result, advance(result, given, None))
        install(model, result)
    monkeypatch.setattr(
        "transformers_qaig.calibration.target_quantizer.quantize_block", lambda *_: pytest.fail("again")
    )
    with BlockStore(config, plan, CalibrationData(), unquantized) as store:
        again = quantize_target(Target("block", unquantized["block"], ""), plan, given, settings(), store)
    (kept,) = again.results
    assert kept.summary.resumed
    assert torch.equal(kept.module[1].weight_packed, model["block"][1].weight_packed)  # type: ignore[index]
