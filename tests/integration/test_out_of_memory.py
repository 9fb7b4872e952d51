"""Too little memory during calibration names what to lower; other errors stay what they are."""

from pathlib import Path

import pytest
import torch

from tests.integration.whole_model import quantize
from transformers_qaig.calibration import target_quantizer
from transformers_qaig.execution import out_of_memory as memory


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_names_the_levers(llava: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    def fail(*_):
        raise RuntimeError("the forward of sample 3 failed") from error

    monkeypatch.setattr(target_quantizer, "quantize_block", fail)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        quantize(llava, bits=4)
    for lever in (
        "num_samples",
        "max_pixels",
        "CalibrationConfig(device=",
        "batch size",
        "model.language_model.layers.0",
        "samples, which hold",
    ):
        assert lever in str(caught.value)


def test_samples_that_hold_nothing_are_only_counted() -> None:
    with (
        pytest.raises(torch.OutOfMemoryError, match=r"computing on cpu; 12 samples\)"),
        memory.out_of_memory_explained("here", None, 12, lambda: 0),
    ):
        raise MemoryError


def test_other_errors_stay_what_they_are() -> None:
    with (
        pytest.raises(RuntimeError, match="shapes") as caught,
        memory.out_of_memory_explained("here", None, 0, lambda: 0),
    ):
        raise RuntimeError("shapes differ")
    assert not isinstance(caught.value, torch.OutOfMemoryError)
