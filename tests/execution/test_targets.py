"""Where forward passes stop: every part in the order in which it runs, and what cannot be stopped at left out."""

import pytest
import torch
from torch import nn

from tests.families import build, samples
from transformers_qaig import QAIGConfig
from transformers_qaig.calibration.decisions import BlockDecisions, pack
from transformers_qaig.execution.targets import Target, find_targets, row_chunks_of
from transformers_qaig.formats.scheme import Rotation, WeightScheme
from transformers_qaig.nn.linear import QAIGLinear
from transformers_qaig.plan.build import make_plan
from transformers_qaig.rounding.packed_layers import concat_rows
from transformers_qaig.structure import ModelStructure, find_decoder_blocks

EVERYTHING = QAIGConfig(vision_bits=4, embedding_bits=4, lm_head_bits=4, calibration={"min_coverage": 0})


def targets_of(family: str, *, text: bool = False):
    model, processor = build(family)
    inputs = samples(processor, 2) + (samples(processor, 1, image=False) if text else [])
    structure = ModelStructure.of(model)
    outside = structure.without_tied_head(make_plan(model, EVERYTHING)[1].outside_plan)
    found, uncalibrated = find_targets(model, structure, outside, inputs, None)
    return model, [target.path for target in found], [target.path for target in uncalibrated]


def test_without_anything_to_pack_outside_there_are_the_blocks_alone() -> None:
    model, _ = build("llava")
    found, uncalibrated = find_targets(model, ModelStructure.of(model), [], [{"input_ids": torch.tensor([[5]])}], None)
    assert {target.path: target.module for target in found} == find_decoder_blocks(model)
    assert all(target.token_input for target in found)
    assert not uncalibrated


def test_embeddings_come_first_where_the_model_asks_for_them_first() -> None:
    _, paths, uncalibrated = targets_of("llava", text=True)
    assert paths == [
        "model.language_model.embed_tokens",
        "model.vision_tower.encoder.layers.0",
        "model.vision_tower.encoder.layers.1",
        "model.multi_modal_projector",
        "model.language_model.layers.0",
        "model.language_model.layers.1",
        "lm_head",
    ]
    assert not uncalibrated


def test_mergers_between_a_towers_blocks_stand_between_them() -> None:
    _, paths, uncalibrated = targets_of("qwen3_vl")
    visual = [path.removeprefix("model.visual.") for path in paths if "visual" in path]
    assert visual == [
        *(f"{name}.{i}" for i in range(3) for name in ("blocks", "deepstack_merger_list")),
        "merger",
    ]
    assert not uncalibrated


def test_a_tower_that_runs_first_and_a_tied_head() -> None:
    _, paths, _ = targets_of("mllama")
    assert paths.index("model.multi_modal_projector") < paths.index("model.language_model.embed_tokens")
    _, paths, _ = targets_of("gemma3")
    assert "lm_head" not in paths


def test_what_runs_twice_in_a_forward_pass_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = build("llava")
    once = type(model.model).get_image_features

    def by_image(self, pixel_values, *args, **kwargs):
        once(self, pixel_values, *args, **kwargs)
        return once(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "get_image_features", by_image)
    outside = make_plan(model, EVERYTHING)[1].outside_plan
    found, uncalibrated = find_targets(model, ModelStructure.of(model), outside, samples(processor, 2), None)
    assert [target.path for target in found] == [
        "model.language_model.embed_tokens",
        *find_decoder_blocks(model),
        "lm_head",
    ]
    assert len(uncalibrated) == 3
    assert all("vision" in target.path or "projector" in target.path for target in uncalibrated)


def test_the_order_run_leaves_the_model_as_it_was() -> None:
    model, processor = build("llava")
    before = {name: (p.data_ptr(), p.device) for name, p in model.named_parameters()}
    outside = make_plan(model, EVERYTHING)[1].outside_plan
    find_targets(model, ModelStructure.of(model), outside, samples(processor, 1), "cpu")
    assert {name: (p.data_ptr(), p.device) for name, p in model.named_parameters()} == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules() if isinstance(m, nn.Linear))


def test_rows_that_are_joined_compute_what_the_linear_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of one kind, also where the plan offers a rotation that some chunks might keep and others not."""
    monkeypatch.setattr("transformers_qaig.execution.targets.ROWS_PER_CHUNK", 32)
    linear, x = nn.Linear(64, 80), torch.randn(5, 64)
    plan = {"projector": WeightScheme(8, 32, rotation=Rotation(32, 1))}
    chunks = row_chunks_of(Target("projector", linear, ""), plan)
    assert [chunk.path for chunk in chunks] == ["projector.0", "projector.32", "projector.64"]
    assert all(chunk.schemes == {"linear": WeightScheme(8, 32)} for chunk in chunks)
    results = [
        pack(chunk.module, BlockDecisions(chunk.schemes), torch.float32).get_submodule("linear") for chunk in chunks
    ]
    whole = concat_rows(results)
    assert isinstance(whole, QAIGLinear)
    torch.testing.assert_close(whole(x), linear(x), rtol=0, atol=0.02)
