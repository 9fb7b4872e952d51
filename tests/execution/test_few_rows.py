"""Products of few rows in float32 have the same bits for every number of threads, however `linear` is called."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from transformers_qaig.execution.few_rows import FewRows

X, WEIGHT, BIAS = torch.randn(7, 96), torch.randn(40, 96), torch.randn(40)
CALLS: dict[str, Callable[[], Tensor]] = {
    "by position": lambda: linear(X, WEIGHT, BIAS),
    "by name": lambda: linear(input=X, weight=WEIGHT, bias=BIAS),
    "by both": lambda: linear(X, WEIGHT, bias=BIAS),
}


@pytest.mark.parametrize("call", CALLS)
def test_few_rows_are_padded_to_whole_tiles(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    padded: list[int] = []

    def counted(x: Tensor, widths: tuple[int, ...]) -> Tensor:
        padded.append(widths[-1])
        return pad(x, widths)

    monkeypatch.setattr("transformers_qaig.execution.few_rows.pad", counted)
    with FewRows():
        found = CALLS[call]()
    assert padded == [1]
    assert torch.equal(found, linear(pad(X, (0, 0, 0, 1)), WEIGHT, BIAS)[:7])


def test_what_autograd_records_or_other_functions_get_is_left_alone() -> None:
    weight = WEIGHT.clone().requires_grad_()
    with FewRows():
        assert torch.equal(linear(X, weight=weight), linear(X, weight))
        assert torch.equal(torch.add(input=X, other=1), X + 1)
        linear(input=X, weight=weight).sum().backward()
    assert weight.grad is not None
