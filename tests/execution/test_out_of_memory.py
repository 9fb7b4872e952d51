"""Errors of memory say what needs less; other errors stay as they are."""

import pytest
import torch

from transformers_qaig.execution.out_of_memory import out_of_memory_explained


@pytest.mark.parametrize(
    "error",
    [MemoryError("no room"), RuntimeError("[enforce fail] can't allocate memory"), torch.OutOfMemoryError("full")],
)
def test_an_error_of_memory_names_the_place_and_what_to_reduce(error: Exception) -> None:
    with (
        pytest.raises(torch.OutOfMemoryError) as found,
        out_of_memory_explained("at layers.3", "cuda:0", 7, lambda: 3 * 2**30),
    ):
        raise error
    message = str(found.value)
    assert "out of memory at layers.3 (computing on cuda:0; 7 samples, which hold 3.0 GiB" in message
    assert "QAIGConfig(num_samples=...)" in message
    assert message.endswith(f"The error was: {error}")


def test_an_error_that_memory_led_to_counts_and_others_do_not() -> None:
    with pytest.raises(torch.OutOfMemoryError), out_of_memory_explained("", None, 0, lambda: 0):
        raise RuntimeError("the forward of sample 3 failed") from MemoryError()
    with pytest.raises(RuntimeError, match=r"^a bug$"), out_of_memory_explained("", None, 0, lambda: 0):
        raise RuntimeError("a bug")
