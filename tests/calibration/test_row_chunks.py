"""Single linears, quantized some rows at a time."""

import pytest
import torch
from torch import nn

from transformers_qaig.calibration import row_chunks as slices
from transformers_qaig.calibration.decisions import BlockDecisions, packed
from transformers_qaig.calibration.targets import Target
from transformers_qaig.nn.linear import QAIGLinear


def test_slices_that_are_joined_compute_what_the_linear_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of one kind, also where the plan offers a rotation that some slices might keep and others not."""
    monkeypatch.setattr(slices, "ROWS_PER_CHUNK", 32)
    linear, x = nn.Linear(64, 80), torch.randn(5, 64)
    entry = {"bits": 8, "group_size": 32, "sym": False, "rotation": {"block": 32, "seed": 1}}
    plan = {"projector": entry}
    parts = slices.row_chunks_of(Target("projector", linear, False), plan)
    assert [part.path for part in parts] == ["projector.0", "projector.32", "projector.64"]
    assert plan == {"projector": {"bits": 8, "group_size": 32, "sym": False}}
    assert all(part.entries == {"linear": plan["projector"]} for part in parts)
    results = [
        packed(part.block, BlockDecisions(part.entries), torch.float32).get_submodule("linear") for part in parts
    ]
    whole = slices.concat_rows(results)
    assert isinstance(whole, QAIGLinear)
    torch.testing.assert_close(whole(x), linear(x), rtol=0, atol=0.02)
