"""A target's error is split: what came in, and where it is, at tokens of pictures or of text."""

import math

import pytest
import torch

from tests.lifecycle import FAST
from transformers_qaig import QAIGConfig
from transformers_qaig.execution.layer_inputs import LayerInputs
from transformers_qaig.execution.stream_errors import StreamErrors


def test_errors_of_pictures_and_text_are_told_apart() -> None:
    x = torch.ones(1, 4, 2)
    x_q, out_q = x.clone(), x.clone()
    x_q[0, 0] = 1.5  # a picture's token: 0.25 of one token's energy
    out_q[0, 3] = 2.0  # a token of text
    mask, pictures = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[True, True, False, False]])
    streams = StreamErrors()
    streams.add((LayerInputs((x_q,), {}), LayerInputs((x,), {})), ((out_q,), (x,)), mask, pictures)
    assert streams.entering.value == pytest.approx(0.25 / 4)
    assert streams.pictures.value == 0
    assert streams.text.value == pytest.approx(0.5)


def test_without_pictures_there_is_no_split() -> None:
    x, mask = torch.ones(1, 4, 2), torch.ones(1, 4, dtype=torch.bool)
    streams = StreamErrors()
    streams.add((LayerInputs((x,), {}), LayerInputs((x,), {})), (x, x), mask, None)
    assert math.isnan(streams.pictures.value)
    assert streams.entering.value == 0


def test_a_run_records_streams_and_memory_of_every_block(quantized: tuple[torch.nn.Module, object]) -> None:
    assert QAIGConfig(**FAST).recipe.calibrates
    first, *others = [t for t in quantized[0].qaig_report.targets if ".layers." in t.path]
    assert first.entering == 0
    for block in others:
        assert block.entering > 0
        assert min(block.pictures, block.text) <= block.error <= max(block.pictures, block.text)
    assert first.memory > 1 << 20
    assert quantized[0].qaig_report.num_targets == len(quantized[0].qaig_report.targets)
