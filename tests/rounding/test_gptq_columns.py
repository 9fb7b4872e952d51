"""`qaig::gptq_columns` refuses what does not fit, by name; its values are tested in `test_gptq.py`."""

from typing import Any

import pytest
import torch

from transformers_qaig.rounding.gptq_columns import gptq_columns

NAMES = ("rows", "errors", "codes", "factor", "groups", "step", "scale", "zero")


def arguments() -> dict[str, Any]:
    step = torch.full((2, 5), 0.1)
    tensors = (
        torch.randn(4, 5), torch.zeros(4, 5), torch.zeros(4, 5, dtype=torch.uint8), torch.eye(4),
        torch.tensor([0, 0, 1, 1]), step, step.clone(), torch.zeros(2, 5),
    )  # fmt: skip
    return dict(zip(NAMES, tensors, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "change", [lambda t: t[:-1], lambda t: t.to(torch.int16), lambda t: t.to_sparse(), lambda t: None]
)
def test_a_tensor_that_does_not_fit_is_named(name: str, change) -> None:
    given = arguments()
    given[name] = change(given[name])
    other = {"rows": "errors", "step": "scale"}.get(name, name)  # the others are measured by these two
    with pytest.raises(ValueError, match=f"{name}|{other}"):
        gptq_columns(*given.values(), 15)


@pytest.mark.parametrize("name", ["rows", "errors", "codes"])
def test_what_is_written_has_memory_of_its_own(name: str) -> None:
    given = arguments()
    given[name] = given[name][:1].expand(4, 5)
    with pytest.raises(ValueError, match=f"{name} is written"):
        gptq_columns(*given.values(), 15)


def test_codes_fit_into_a_byte() -> None:
    with pytest.raises(ValueError, match="max_code"):
        gptq_columns(*arguments().values(), 256)
