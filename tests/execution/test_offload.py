"""Modules around the targets are watched; targets and embeddings are not, and the hooks are gone afterwards."""

from collections.abc import Mapping

import torch
from torch import nn

from transformers_qaig.execution.offload import Offload, offloaded


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


def test_one_watch_can_end_before_the_context() -> None:
    layer, calls = nn.Linear(2, 2), []
    with Offload(None) as offload, offload.watch(layer, on_call=lambda: calls.append("called")):
        layer(torch.ones(1, 2))
    layer(torch.ones(1, 2))
    assert calls == ["called"]
