"""A tensor whose memory was freed, as FSDP does between uses, is refused by name; no operator reads past its end."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.robustness.children import run_all
from tests.robustness.odd_arguments import freed
from tests.robustness.operator_calls import CALLS, Call
from transformers_qaig import QAIGLinear

SIZED = ("linear", "linear_many", "embedding", "experts_linear", "experts_route", "experts_sum")


def whole_calls() -> Iterator[Call]:
    """Calls of every operator in which no tensor is empty, and which are answered."""
    for make in dict.fromkeys(CALLS):
        found = [call for seed in range(40) if _is_whole(call := make(Random(seed))) and _is_answered(call)]
        yield from found[:6]


def _is_whole(call: Call) -> bool:
    tensors = [t for argument in call.arguments for t in (argument if isinstance(argument, list) else [argument])]
    return [] not in call.arguments and all(t.numel() for t in tensors if isinstance(t, Tensor))


def _is_answered(call: Call) -> bool:
    try:
        call.run()
    except (RuntimeError, ValueError):  # a float64 input, which some kernels do not take
        return False
    return True


def with_one_freed(call: Call) -> Iterator[tuple[str, Call]]:
    """Yields the call once for each of its tensors, with the memory of that one freed, and the tensor's name."""
    names = [argument.name for argument in getattr(torch.ops.qaig, call.operator).default._schema.arguments]
    for index, argument in enumerate(call.arguments):
        several = isinstance(argument, list)
        tensor = argument[0] if isinstance(argument, list) else argument
        if isinstance(tensor, Tensor):
            for left in {0, tensor.numel() * tensor.element_size() - 1}:
                changed: Any = [freed(tensor, left), *argument[1:]] if several else freed(tensor, left)
                arguments = [changed if i == index else other for i, other in enumerate(call.arguments)]
                yield names[index], replace(call, arguments=arguments)


def test_an_operator_names_a_tensor_whose_memory_was_freed() -> None:
    cases = [(name, changed) for call in whole_calls() for name, changed in with_one_freed(call)]
    assert {call.operator for _, call in cases} >= set(SIZED)
    tried: list[Callable[[], object]] = [lambda part=cases[i : i + 50]: _wrong(part) for i in range(0, len(cases), 50)]
    assert [ended.value for ended in run_all(tried)] == [[]] * len(tried)


def _wrong(cases: list[tuple[str, Call]]) -> list[str]:
    """What is not refused by its name."""
    wrong = []
    for name, call in cases:
        try:
            call.run()
            wrong.append(f"{call.operator}: {name} is accepted")
        except (RuntimeError, ValueError) as error:
            if not (name in str(error) and "it was freed" in str(error)):
                wrong.append(f"{call.operator}: {name}: {error}")
    return wrong


def test_a_layer_whose_words_were_freed_says_so() -> None:
    codes = torch.zeros(16, 32, dtype=torch.uint8)
    layer = QAIGLinear.from_codes(codes, torch.ones(16, 1), None, bits=4, group_size=32)
    layer.to_kernel_layout()
    layer.weight_packed.untyped_storage().resize_(0)
    with pytest.raises((RuntimeError, ValueError), match="packed has memory of 0 bytes"):
        layer(torch.randn(2, 32))
    with torch.autocast("cpu"), pytest.raises((RuntimeError, ValueError), match="packed has memory of 0 bytes"):
        layer(torch.randn(2, 32))
