"""No call of an operator crashes or hangs, whatever it is given: it answers right, or says what is wrong.

`QAIG_FUZZ_SEED=7` makes other calls, `QAIG_FUZZ_CALLS` of them; `python -m pytest -s` shows the figures.
"""

import os
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.robustness.children import Ended, run_all
from tests.robustness.odd_arguments import is_freed
from tests.robustness.operator_calls import REFERENCES, Call, make

SEED = os.environ.get("QAIG_FUZZ_SEED", "0")
COUNT = int(os.environ.get("QAIG_FUZZ_CALLS", 2400))
BATCH = 40  # calls in one child
FAULTS = ("wrong", "accepted", "unclear", "memory", "signal", "hang")
CLEAR = (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError)


@pytest.mark.slow
def test_every_call_is_answered_or_refused() -> None:
    batches = [range(start, min(start + BATCH, COUNT)) for start in range(0, COUNT, BATCH)]
    found: list[tuple[str, str]] = []
    for batch, ended in zip(batches, run_all(_tried(batch) for batch in batches), strict=True):
        if ended.how == "value":
            found += ended.value  # type: ignore[operator]
        else:  # which of them was it?
            alone = run_all(_tried(range(number, number + 1)) for number in batch)
            found += [outcome for number, one in zip(batch, alone, strict=True) for outcome in _found(number, one)]
    counts = Counter(kind for kind, _ in found)
    print(f"\nseed {SEED}: {len(found)} calls: {dict(counts.most_common())}")
    faults = [f"{kind}: {text}" for kind, text in found if kind in FAULTS]
    assert not faults, f"{len(faults)} of {len(found)}\n" + "\n".join(faults[:40])
    assert len(found) == COUNT
    assert counts["right"] > COUNT / 10  # refusing everything would be no answer


def _tried(numbers: range) -> Callable[[], object]:
    return lambda: [outcome(number) for number in numbers]


def _found(number: int, ended: Ended) -> list[tuple[str, str]]:
    if ended.how == "value":
        return list(ended.value)  # type: ignore[call-overload]
    return [
        (ended.how if ended.how in FAULTS else "unclear", f"{_text(number, _call(number))}: {str(ended.value)[:200]}")
    ]


def _call(number: int) -> Call:
    return make(Random(f"{SEED}-{number}"))


def outcome(number: int) -> tuple[str, str]:
    """`"right"`, `"refused"` or a fault, and, for a fault, the call."""
    call = _call(number)
    given = [_copy(argument) for argument in call.arguments]  # gptq_columns writes into them
    try:
        result = call.run()
    except CLEAR as error:
        kind = "unclear" if isinstance(error, RecursionError) or not _is_clear(str(error)) else "refused"
        kind = "memory" if "not enough memory" in str(error) else kind
        return kind, _faulty(kind, number, call, error)
    except BaseException as error:
        return "unclear", _faulty("unclear", number, call, error)
    if call.operator == "gptq_columns":
        result = call.arguments[:3]
    kind, why = _judged(call, given, result)
    return kind, _faulty(kind, number, call, why)


def _is_clear(text: str) -> bool:
    return len(text) > 10 and not any(words in text for words in ("INTERNAL ASSERT", "API call failed"))


def _faulty(kind: str, number: int, call: Call, why: object) -> str:
    return f"{_text(number, call)}\n    {type(why).__name__}: {str(why)[:200]}" if kind in FAULTS else ""


def _text(number: int, call: Call) -> str:
    return f"{number}: {call.operator}:{call.text}"


def _judged(call: Call, given: list[Any], result: Any) -> tuple[str, str]:
    tensors = [t for t in _flat(given) if isinstance(t, Tensor)]
    if any(_is_dense(t) and is_freed(t) for t in tensors):
        return "accepted", "though the memory of a tensor was freed"
    if any(t.is_meta for t in tensors):
        return ("right", "") if all(t.is_meta for t in _flat(result)) else ("wrong", "values from no values")
    if call.operator not in REFERENCES:
        return "right", ""
    plain = [_plain(argument) for argument in given]
    try:
        expected = REFERENCES[call.operator](*plain)
    except Exception as error:
        return "accepted", f"and the reference says: {type(error).__name__}: {error}"
    expected = plain[:3] if call.operator == "gptq_columns" else _flat(expected)
    pairs = list(zip(_flat(result), expected, strict=True))
    wrong = [True for one, other in pairs if one.shape != other.shape or one.dtype != other.dtype]
    if wrong:
        return "wrong", f"{[(t.dtype, t.shape) for t in _flat(result)]} for {[(t.dtype, t.shape) for t in expected]}"
    wrong = [True for one, other in pairs if not _close(one, other)]
    return ("wrong", "other values than the reference's") if wrong else ("right", "")


def _close(one: Tensor, other: Tensor) -> bool:
    one, other = one.detach().double(), other.detach().double()
    finite = one.isfinite() & other.isfinite()
    if not finite.all():  # what comes of values that are not finite, or too large, is the dtype's business
        return True
    return float((one - other).norm()) <= 0.03 * float(other.norm()) + 1e-6


def _copy(argument: Any) -> Any:
    if isinstance(argument, Tensor) and _is_dense(argument) and not is_freed(argument):
        return argument.detach().clone(memory_format=torch.preserve_format)
    return argument


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested


def _plain(argument: Any) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    dense = argument.detach()
    dense = dense.dequantize() if dense.is_quantized else dense
    dense = dense.to_dense() if dense.layout != torch.strided else dense
    return dense.resolve_neg().clone(memory_format=torch.contiguous_format)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [item for part in value for item in _flat(part)]
    return [value]
