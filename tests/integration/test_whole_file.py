"""Tower, projector, embeddings and head packed too: from the request to the file and back."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from tests.families import FAMILIES, save
from tests.integration.whole_model import are_tied_in_memory, quantize
from tests.lifecycle import logits, logits_in_a_new_process, packed
from transformers_qaig import QAIGLinear
from transformers_qaig.nn import QAIGEmbedding
from transformers_qaig.structure import find_input_embeddings, find_lm_head, find_vision_tower

WHOLE = {"vision_bits": 8, "embedding_bits": 8, "lm_head_bits": 8}

QUICK = ("llava", "qwen2_5_vl", "gemma3")


def linears(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, QAIGLinear) or type(m) is nn.Linear]


@pytest.mark.parametrize("family", [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FAMILIES])
def test_every_family_is_packed_whole_and_reloads_bit_by_bit(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / "fp")
    model = quantize(tmp_path / "fp", bits=8, calibration={"min_coverage": 0.1}, **WHOLE)
    table, head = find_input_embeddings(model), find_lm_head(model)
    assert isinstance(table.module, QAIGEmbedding)
    assert isinstance(head.module, QAIGLinear)
    for path, part in find_vision_tower(model).items():
        assert all(isinstance(m, QAIGLinear) or min(m.weight.shape) < 32 for m in linears(part)), path
    plan = model.config.quantization_config.plan
    assert sorted({path.partition(".*.")[0] for path in plan}) == sorted(packed(model))  # a stack is one module
    treated = [summary.path for summary in model.qaig_report.targets]
    assert len(treated) == len(set(treated))
    assert all(0 < summary.error < 0.1 for summary in model.qaig_report.targets)

    ours = logits(model, tmp_path / "fp")
    reference = logits(AutoModelForImageTextToText.from_pretrained(tmp_path / "fp"), tmp_path / "fp")
    assert torch.corrcoef(torch.stack([ours.flatten().float(), reference.flatten().float()]))[0, 1] > 0.99
    model.save_pretrained(tmp_path / "q")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "q")
    assert torch.equal(logits(again, tmp_path / "fp"), ours)
    assert (
        are_tied_in_memory(again)
        == are_tied_in_memory(model)
        == (family in ("gemma3", "internvl", "paligemma", "mistral3"))
    )


@pytest.mark.parametrize("which", ["tied", "untied"])
def test_reloads_in_a_new_process(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model, folder = request.getfixturevalue(which)
    source = request.getfixturevalue({"tied": "gemma3", "untied": "llava"}[which])
    assert torch.equal(logits_in_a_new_process(folder, source, tmp_path), logits(model, source))


@pytest.mark.parametrize("which", ["tied", "untied"])
def test_the_report_tells_the_size_of_the_file(which: str, request: pytest.FixtureRequest) -> None:
    model, folder = request.getfixturevalue(which)
    stored = 8 * (folder / "model.safetensors").stat().st_size
    coverage = model.qaig_report.coverage
    assert coverage.whole.saved == stored
    assert coverage.whole.full > 3 * stored  # float32
    assert sum(size.saved for size in coverage.sizes.values()) == stored
    assert find_input_embeddings(model).path in str(model.qaig_report)
