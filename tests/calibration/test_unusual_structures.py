"""Models whose parts lie elsewhere than in most are calibrated whole, or refused before a weight is read."""

import pytest
import torch
import transformers as hf

from tests.tiny_models.encoder_decoders import udop
from tests.tiny_models.unusual_decoders import idefics
from tests.tiny_models.unusual_parts import texts
from tests.unusual import ENCODER_DECODERS, UNUSUAL
from transformers_qaig import CalibrationConfig, QAIGConfig
from transformers_qaig.calibration.pipeline import calibrate
from transformers_qaig.data.decoder_inputs import DecoderInputs
from transformers_qaig.data.loader import load_inputs
from transformers_qaig.data.tensors import NO_ANSWER, token_mask
from transformers_qaig.execution.targets import find_targets
from transformers_qaig.plan.build import list_schemes, make_plan
from transformers_qaig.quantizer.bit_costs.measure import measure_costs
from transformers_qaig.structure import ModelStructure, find_decoder_blocks, find_vision_tower


def errors(name: str, recipe: str, **options: object) -> tuple[list[float], list[str]]:
    """Output errors of the blocks, and the linears that were rounded to nearest."""
    model, data = UNUSUAL[name]()
    config = QAIGConfig(recipe=recipe, bits=3, group_size=32, dataset=data, **options)
    plan, coverage = make_plan(model, config)
    coverage.check_minimum(0.9)
    report = calibrate(model, plan, coverage, load_inputs(model, config), config)
    return [b.error for b in report.targets], [linear for b in report.targets for linear in b.to_nearest]


FAST = ("blip_2_opt", "deepseek_v3", "pix2struct")
LARGE_SCORES = ("udop", "gemma_4", "t5_gemma_2")
"""Random weights make their attention sharp: it flips from token to token, and validation rejects what rounds it."""


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in UNUSUAL]
)
def test_calibration_lowers_the_error_of_every_block(name: str) -> None:
    default, to_nearest = errors(name, "default")
    rtn, _ = errors(name, "rtn")
    assert not to_nearest
    assert len(default) == len(rtn)
    assert all(after < (1.1 if name in LARGE_SCORES else 0.9) * before for after, before in zip(default, rtn))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["idefics", "vision_encoder_decoder", "florence_2", "t5_gemma_2", "blip_2_opt"])
def test_their_towers_are_calibrated(name: str) -> None:
    default, to_nearest = errors(name, "default", vision_bits=4)
    assert torch.tensor(default).isfinite().all()
    assert not to_nearest


def test_the_text_encoder_counts() -> None:
    model, _ = udop()
    assert [path.rpartition(".")[0] for path in find_decoder_blocks(model)] == ["encoder.block"] * 2 + [
        "decoder.block"
    ] * 2


def test_blocks_of_two_lists_run_in_turn() -> None:
    model, data = idefics()
    found, lost = find_targets(model, ModelStructure.of(model), [], data, None)
    assert [target.path.removeprefix("model.") for target in found] == [
        "gated_cross_attn_layers.0",
        "layers.0",
        "layers.1",
        "gated_cross_attn_layers.1",
        "layers.2",
        "layers.3",
    ]
    assert not lost


def test_a_tower_inside_the_decoder_is_no_block_and_is_found() -> None:
    model, _ = idefics()
    assert set(find_vision_tower(model)) == {"model.vision_model", "model.perceiver_resampler", "model.norm"}
    assert not any("vision" in path or "perceiver" in path for path in find_decoder_blocks(model))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("t5_gemma_2", ["model.encoder.vision_tower", "model.encoder.multi_modal_projector"]),
        ("vision_encoder_decoder", ["encoder"]),
        ("pix2struct", ["encoder"]),
    ],
)
def test_the_tower_of_an_encoder_decoder_is_found(name: str, wanted: list[str]) -> None:
    model, _ = UNUSUAL[name]()
    assert sorted(find_vision_tower(model)) == sorted(wanted)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_every_block_has_the_mask_of_its_own_tokens(name: str) -> None:
    model, data = UNUSUAL[name]()
    read = load_inputs(model, QAIGConfig(dataset=data))
    pairs = zip(read.answer_masks, read.samples)
    assert all(answer.shape == sample["decoder_input_ids"].shape for answer, sample in pairs)
    found, _ = find_targets(model, ModelStructure.of(model), [], read.samples, None)
    assert {t.token_input for t in found if "encoder" in t.path.split(".")} <= {"input_ids"}
    assert {t.token_input for t in found if "encoder" not in t.path.split(".")} == {"decoder_input_ids"}


@pytest.mark.slow
def test_a_budget_goes_by_the_answers_of_the_decoder() -> None:
    model, data = udop()
    config = QAIGConfig(budget=3.5, group_size=32, dataset=data[:2], recipe="gptq")
    options, _ = list_schemes(model, config)
    costs = measure_costs(model, options, load_inputs(model, config), config)
    assert all(option.cost >= 0 for choices in costs.values() for option in choices)
    assert any(option.cost > 0 for choices in costs.values() for option in choices)


def test_a_conversation_is_divided_at_its_first_answer() -> None:
    inputs = DecoderInputs(start=1, pad=0)
    ids = torch.arange(10, 18)[None]
    labels = torch.full_like(ids, NO_ANSWER)
    labels[0, 5:] = ids[0, 5:]
    sample = inputs({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    assert sample["input_ids"].tolist() == [[10, 11, 12, 13, 14]]
    assert sample["attention_mask"].shape == (1, 5)
    assert sample["decoder_input_ids"].tolist() == [[1, 15, 16]]
    assert "labels" not in sample


def test_labels_of_their_own_are_shifted_and_their_padding_is_masked() -> None:
    sample = DecoderInputs(start=1, pad=0)({"labels": torch.tensor([[5, 6, 7, 8], [5, 6, NO_ANSWER, NO_ANSWER]])})
    assert sample["decoder_input_ids"].tolist() == [[1, 5, 6, 7], [1, 5, 6, 0]]
    assert token_mask(sample).tolist() == [[True] * 4, [True, True, True, False]]


def test_pictures_without_any_text_are_refused() -> None:
    model, data = UNUSUAL["vision_encoder_decoder"]()
    pictures = [{"pixel_values": sample["pixel_values"], "labels": None} for sample in data]
    with pytest.raises(ValueError, match="give 'labels' or 'decoder_input_ids'"):
        load_inputs(model, QAIGConfig(dataset=pictures))


def test_models_that_only_generate_together_are_refused() -> None:
    with torch.device("meta"):
        model = hf.Qwen2_5OmniForConditionalGeneration(hf.Qwen2_5OmniConfig())
    with pytest.raises(ValueError, match=r"Qwen2_5OmniThinkerForConditionalGeneration\.from_pretrained"):
        make_plan(model, QAIGConfig(calibration=CalibrationConfig(min_coverage=0.0)))


def test_text_alone_gives_the_decoder_the_encoders_text() -> None:
    ids = texts(1)[0]["input_ids"]
    sample = DecoderInputs(start=1, pad=0)({"input_ids": ids})
    assert sample["decoder_input_ids"].tolist() == [[1, *ids[0, :-1].tolist()]]
