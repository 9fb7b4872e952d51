"""Tensor parallelism is refused before a weight is read; one process is not."""

from types import SimpleNamespace
from typing import Any

import pytest

from transformers_qaig.loading import parallel


@pytest.mark.parametrize("arguments", [{}, {"distributed_config": None}, {"distributed_config": SimpleNamespace()}])
def test_one_process_loads(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "loading_arguments", lambda: arguments)
    parallel.refuse_tensor_parallel()


def test_several_are_told_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"distributed_config": SimpleNamespace(tp_size=2)}
    monkeypatch.setattr(parallel, "loading_arguments", lambda: given)
    with pytest.raises(NotImplementedError, match=r"`tp_plan` with 2 processes.*Use `device_map='auto'`"):
        parallel.refuse_tensor_parallel()
