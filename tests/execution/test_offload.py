"""What computes is copied to a device and freed, and a module is as it was afterwards.

Modules around the targets are watched; targets and embeddings are not, and the hooks are gone in the end.
"""

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from transformers_qaig.execution.offload import Offload, offloaded, onload


def hooks(module: nn.Module) -> Mapping[int, object]:
    return module._forward_pre_hooks


def test_what_is_beside_the_targets_is_watched_within_the_context() -> None:
    model = nn.ModuleDict(
        {"embed": nn.Embedding(4, 2), "norm": nn.LayerNorm(2), "blocks": nn.ModuleList([nn.Linear(2, 2)])}
    )
    target = model["blocks"][0]
    with offloaded(model, [target], None):
        assert hooks(model["norm"])
        assert not any(hooks(module) for module in (model, model["embed"], model["blocks"], target))
    assert not hooks(model["norm"])


def test_a_watched_module_reports_calls_until_the_context_ends() -> None:
    layer, calls = nn.Linear(2, 2), []
    expected = layer(torch.ones(1, 2))
    with Offload("cpu") as offload:
        offload.watch(layer, on_call=lambda: calls.append("called"))
        assert torch.equal(layer(torch.ones(1, 2)), expected)
    layer(torch.ones(1, 2))
    assert calls == ["called"]


def test_weights_without_data_are_refused_and_the_others_are_put_back() -> None:
    block = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    pointer = block[0].weight.data_ptr()
    with (
        pytest.raises(ValueError, match="on `meta` cannot be copied to cpu"),
        onload(block, "cpu", dtype=torch.float64),
    ):
        pass
    assert block[0].weight.data_ptr() == pointer


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), None])
def test_nothing_is_copied_where_the_block_is_already(device: torch.device | str | None) -> None:
    block = nn.Linear(2, 2)
    pointer = block.weight.data_ptr()
    with onload(block, device):
        assert block.weight.data_ptr() == pointer
    assert block.weight.data_ptr() == pointer


def test_what_a_module_makes_meanwhile_stays_and_a_change_of_a_copy_is_lost() -> None:
    block = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = block[0].weight.clone()
    with onload(block, None, dtype=torch.float64, without=[block[1]]), torch.no_grad():
        assert [layer.weight.dtype for layer in block] == [torch.float64, torch.float32]
        block[0].weight.mul_(2)
        block[0].register_buffer("longer", torch.ones(3))
    assert torch.equal(block[0].weight, before)
    assert block[0].longer.tolist() == [1, 1, 1]
