"""The moments of a group's inputs: exact products of bfloat16 where a device has them, else float32."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import seeds
from tests.distributed.processes import in_processes
from transformers_qaig.calibration import group_context
from transformers_qaig.calibration.decisions import BlockDecisions
from transformers_qaig.calibration.group_context import GroupContext
from transformers_qaig.config.recipes import recipe_of
from transformers_qaig.distributed import Terms
from transformers_qaig.distributed.joining import join
from transformers_qaig.equalization.fold import Group
from transformers_qaig.execution.group_inputs import GroupInputs
from transformers_qaig.formats.hadamard import Rotation
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.nn.linear import get_linear
from transformers_qaig.rounding import hessian
from transformers_qaig.rounding.moments import InputMoments

K, TOKENS = 272, 150  # more than two stripes, and a rest
Multiply = Callable[[Tensor, Tensor], Tensor]


def context(
    dtype: torch.dtype = torch.bfloat16, recipe: str = "default", outputs: int = K, **scheme: Any
) -> GroupContext:
    """One linear whose input differs in the two models, with padding at the end."""
    generator = seeds.generator()
    block = nn.ModuleDict({"fc": nn.Linear(K, outputs)})
    x = torch.randn(1, TOKENS, K, generator=generator)
    x_q = x + 0.01 * torch.randn(1, TOKENS, K, generator=generator)
    mask = torch.arange(TOKENS)[None] < TOKENS - 20
    inputs = GroupInputs([0], x.to(dtype), x_q.to(dtype), mask, [TOKENS], token_weights=mask.float())
    schemes = {"fc": WeightScheme(3, K, **scheme)}
    group = Group(("fc",), "fc", None, (-1,) * K)
    return GroupContext(block, group, schemes, Terms([inputs]), recipe_of(recipe), torch.float32, False)


def moments_of(found: GroupContext) -> InputMoments:
    return found.measure(BlockDecisions(found.schemes)).moments


def in_float64(found: GroupContext) -> tuple[Tensor, Tensor]:
    """The second moment, and the shift of the outputs where they are few, else of the inputs."""
    (inputs,) = found.inputs
    x, x_q = (t[inputs.mask].double() for t in (inputs.hidden, inputs.hidden_q))
    weight = get_linear(found.block, "fc").weight.double()
    change = (x - x_q) @ weight.T if 2 * len(weight) < K else x - x_q
    return x_q.T @ x_q / len(x), x_q.T @ change / len(x)


@pytest.fixture
def in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Pretends that the CPU multiplies bfloat16 exactly; returns the dtypes that were multiplied."""
    dtypes: list[torch.dtype] = []

    def multiply(a: Tensor, b: Tensor) -> Tensor:
        dtypes.extend((a.dtype, b.dtype))
        return a.float() @ b.float()

    monkeypatch.setattr(group_context, "multiplies_exactly", lambda device: True)
    monkeypatch.setattr(hessian, "product", multiply)
    return dtypes


OUTPUTS = pytest.mark.parametrize("outputs", [16, K])


@OUTPUTS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_moments_are_those_of_float64(dtype: torch.dtype, outputs: int) -> None:
    found = context(dtype, outputs=outputs)
    moments = moments_of(found)
    second, shift = in_float64(found)
    assert moments.shift is not None
    assert (moments.second - second).norm() < 1e-6 * second.norm()
    assert (moments.shift - shift).norm() < 1e-5 * shift.norm()
    assert torch.equal(moments.second, moments.second.T)


@OUTPUTS
def test_products_of_bfloat16_lose_nothing_but_the_last_bits_of_the_shift(
    in_bfloat16: list[torch.dtype], outputs: int
) -> None:
    found = context(outputs=outputs)
    moments = moments_of(found)
    second, shift = in_float64(found)
    assert moments.shift is not None
    assert set(in_bfloat16) == {torch.bfloat16}
    assert moments.second.dtype == moments.shift.dtype == torch.float32
    assert (moments.second - second).norm() < 1e-6 * second.norm()
    assert moments.shift.shape == (K, outputs)
    assert (moments.shift - shift).norm() < 1e-5 * shift.norm()
    assert float(moments.mass) == TOKENS - 20


@pytest.mark.parametrize(
    "case",
    [
        {"dtype": torch.float32},
        {"dtype": torch.float16},
        {"activation_bits": 8},
        {"rotation": Rotation(16, 3)},
    ],
)
def test_other_inputs_are_multiplied_in_float32(case: dict[str, Any], in_bfloat16: list[torch.dtype]) -> None:
    moments_of(context(**case))
    assert set(in_bfloat16) == {torch.float32}


def test_weighed_tokens_are_multiplied_in_float32(in_bfloat16: list[torch.dtype]) -> None:
    found = context()
    found = replace(found, recipe=replace(found.recipe, token_weights="qig"))
    moments_of(found)
    assert set(in_bfloat16) == {torch.float32}


@pytest.mark.parametrize("chooses", [False, True])
@pytest.mark.parametrize("waits", [False, True])
def test_moments_wait_on_the_cpu_where_they_take_much_of_what_is_free(
    chooses: bool, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With those of the samples that are held back, where they have chosen a damping."""
    size = (1 + chooses) * 2 * 4 * K**2
    monkeypatch.setattr(group_context, "free_memory", lambda device: 8 * size - waits)
    found = context()
    found = replace(found, held_back=found.inputs, damping_weights={} if chooses else None)
    moments = moments_of(found)
    (kept,) = found.measured.values()
    assert kept.hessian_of is not found.measure(BlockDecisions(found.schemes)).hessian_of  # which holds factors
    assert (kept.moments is not moments) is waits


def test_moments_of_samples_held_back_are_not_kept_by_who_works_on_the_others() -> None:
    found = context()
    found = replace(found, held_back=found.inputs, damping_weights={})
    decisions = BlockDecisions(found.schemes)
    assert found.measure(decisions).held_back is None
    (kept,) = found.measured.values()
    assert kept.held_back is not None
    assert found.join(decisions).held_back is None


@pytest.mark.parametrize("outputs", [K, 100])
def test_a_process_without_inputs_in_a_round_keeps_step_with_products_of_bfloat16(
    outputs: int, in_bfloat16: list[torch.dtype]
) -> None:
    found = context(outputs=outputs)
    alone = moments_of(found)

    def of_rank(rank: int) -> tuple[Tensor, Tensor | None, Tensor]:
        terms = Terms([] if rank else list(found.inputs), [0], join())
        moments = moments_of(replace(found, inputs=terms))
        return moments.second, moments.shift, moments.mass

    assert alone.shift is not None
    for second, shift, mass in in_processes(2, of_rank):
        assert torch.equal(second, alone.second)
        assert torch.equal(shift, alone.shift)
        assert mass == alone.mass
