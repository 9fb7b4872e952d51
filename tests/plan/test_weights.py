"""Which weights can be packed, and why others cannot."""

import pytest
from torch import nn

from tests.experts import build, stack_of
from transformers_qaig.formats.scheme import MIN_GROUP_SIZE
from transformers_qaig.nn.experts_layout import find_experts
from transformers_qaig.plan.weights import weights_in, why_not


class Subclass(nn.Linear):
    """A linear that may compute something else."""


@pytest.mark.parametrize(
    ("module", "name", "reason"),
    [
        (nn.Linear(MIN_GROUP_SIZE, MIN_GROUP_SIZE), "weight", ""),
        (Subclass(64, 64), "weight", "a parameter of Subclass, not of nn.Linear"),
        (nn.Conv1d(64, 64, 3), "weight", "a parameter of Conv1d, not of nn.Linear"),
        (nn.Linear(64, 64), "lora_A", "not the weight of its linear"),
        (nn.Linear(MIN_GROUP_SIZE - 1, 64), "weight", f"a linear of {MIN_GROUP_SIZE - 1} → 64: too small"),
        (nn.Linear(64, MIN_GROUP_SIZE - 1), "weight", f"a linear of 64 → {MIN_GROUP_SIZE - 1}: too small"),
    ],
)
def test_the_reason_says_what_stands_in_the_way(module: nn.Module, name: str, reason: str) -> None:
    assert why_not(module, name, "a.b", {}).startswith(reason)
    assert bool(why_not(module, name, "a.b", {})) == bool(reason)


def test_experts_come_one_by_one_in_the_place_of_their_stack_and_vectors_do_not() -> None:
    model = build("qwen3_moe")
    stack, layout = stack_of(model)
    block = stack.rpartition(".mlp")[0]
    listed = list(weights_in({block: model.get_submodule(block)}, find_experts(model)))
    found = {path: (tuple(weight.shape), why) for path, weight, why in listed}
    experts = [path for path, _, _ in listed if path.startswith(f"{stack}.")]
    assert experts == [f"{stack}.{e}.{name}" for e in range(layout.num_experts) for name in layout.projections]
    assert {found[path] for path in experts if path.endswith("down_proj")} == {((64, 32), "")}
    assert not any("norm" in path for path in found)
    assert found[f"{block}.self_attn.q_proj"] == ((64, 64), "")
    assert found[f"{block}.mlp.gate"][1] != ""
