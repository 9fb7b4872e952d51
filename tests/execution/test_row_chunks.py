"""Single linears, quantized some rows at a time."""

import pytest
import torch
from torch import nn

from transformers_qaig.calibration.decisions import BlockDecisions, pack
from transformers_qaig.execution import row_chunks
from transformers_qaig.execution.targets import Target
from transformers_qaig.formats.scheme import Rotation, WeightScheme
from transformers_qaig.nn.linear import QAIGLinear
from transformers_qaig.rounding.packed_layers import concat_rows


def test_rows_that_are_joined_compute_what_the_linear_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of one kind, also where the plan offers a rotation that some chunks might keep and others not."""
    monkeypatch.setattr(row_chunks, "ROWS_PER_CHUNK", 32)
    linear, x = nn.Linear(64, 80), torch.randn(5, 64)
    plan = {"projector": WeightScheme(8, 32, rotation=Rotation(32, 1))}
    chunks = row_chunks.row_chunks_of(Target("projector", linear, ""), plan)
    assert [chunk.path for chunk in chunks] == ["projector.0", "projector.32", "projector.64"]
    assert all(chunk.schemes == {"linear": WeightScheme(8, 32)} for chunk in chunks)
    results = [
        pack(chunk.module, BlockDecisions(chunk.schemes), torch.float32).get_submodule("linear") for chunk in chunks
    ]
    whole = concat_rows(results)
    assert isinstance(whole, QAIGLinear)
    torch.testing.assert_close(whole(x), linear(x), rtol=0, atol=0.02)
