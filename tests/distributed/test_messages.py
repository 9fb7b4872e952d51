"""What processes send each other: tensors without the rest of their storage, and errors of any kind."""

import pickle

import pytest
import torch

from transformers_qaig.distributed.messages import as_bytes, received, sent


def test_a_view_is_sent_without_the_rest_of_its_storage() -> None:
    large = torch.randn(1000, 1000)
    text = as_bytes({"part": large[3, :10], "nested": [large[:2, 5]]})
    found = pickle.loads(text)
    assert len(text) < 5000
    assert torch.equal(found["part"], large[3, :10])
    assert torch.equal(found["nested"][0], large[:2, 5])


def test_a_tensor_that_autograd_recorded_is_sent_as_its_values() -> None:
    weight = torch.ones(3, requires_grad=True)
    found = pickle.loads(as_bytes(2 * weight))
    assert found.tolist() == [2.0] * 3
    assert not found.requires_grad


class Unpicklable(Exception):
    def __init__(self, one: int, two: int):
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [(ValueError("bits"), ValueError, "bits"), (Unpicklable(1, 2), RuntimeError, "Unpicklable: 1 and 2")],
)
def test_an_error_arrives_as_itself_or_as_its_text(error: Exception, kind: type[Exception], text: str) -> None:
    found = received(sent(error))
    assert type(found) is kind
    assert str(found) == text
