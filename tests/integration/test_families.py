"""The tiny models used by every other test are themselves sound."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.families import FAMILIES, build, samples, save
from tests.tolerance import assert_close, terms_of


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_family_builds_saves_and_loads(name, tmp_path):
    model, processor = build(name)
    inputs = samples(processor, 3)
    assert len({sample["input_ids"].shape[1] for sample in inputs}) > 1
    for sample in inputs:
        logits = model(**sample, use_cache=False).logits
        assert torch.isfinite(logits).all()
        assert 0.3 < logits.std() < 10
        assert logits.argmax(-1).unique().numel() > 1

    save(name, tmp_path, dtype=torch.float32)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    expected = model(**inputs[0], use_cache=False).logits
    assert_close(loaded(**inputs[0], use_cache=False).logits, expected, terms_of(model))

    sample = samples(AutoProcessor.from_pretrained(tmp_path), 1)[0]
    assert sample.keys() == inputs[0].keys()
    assert torch.equal(sample["pixel_values"], inputs[0]["pixel_values"])
    assert torch.isfinite(loaded(**sample, use_cache=False).logits).all()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_pictures_and_vectors_matter(name):
    model, processor = build(name)
    for path, parameter in model.named_parameters():
        assert parameter.abs().max() > 0, path
        assert parameter.numel() == 1 or parameter.std() > 0.01, path
    sample = samples(processor, 1)[0]
    seen = model(**sample, use_cache=False).logits
    sample["pixel_values"] = -sample["pixel_values"]
    assert (model(**sample, use_cache=False).logits - seen).abs().max() > 1e-3
