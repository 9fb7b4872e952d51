"""The memory that is stated for experts, at the width of the largest models: anonymous memory is watched."""

import gc
import sys

import pytest
import torch
from torch import nn
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

from tools.anonymous_memory import peak_rss_anon, rss_anon
from transformers_qaig.calibration.decisions import BlockDecisions
from transformers_qaig.calibration.experts import Moments, StackStep
from transformers_qaig.calibration.group_context import GroupContext
from transformers_qaig.config.recipes import RECIPES
from transformers_qaig.distributed import Terms
from transformers_qaig.equalization.fold import Group
from transformers_qaig.execution.routed_rows import RoutedRows
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.nn.experts_module import LinearExperts

EXPERTS, HIDDEN, INNER, TOKENS = 4, 7168, 512, 200
BESIDE = 200 * 10**6
"""Bytes beside the moments: a stripe of a product, rows of a chunk, and an expert's weights in float32."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(("memory", "slices"), [(420, [1, 1, 1, 1]), (850, [2, 2]), (1700, [4])])
def test_moments_at_7168_channels_take_what_is_stated(
    memory: int, slices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is solved: that would take minutes."""
    monkeypatch.setattr(Moments, "solved", lambda *_: None)
    config = DeepseekV3Config(n_routed_experts=EXPERTS, hidden_size=HIDDEN, moe_intermediate_size=INNER)
    block, stack = nn.Module(), DeepseekV3Experts(config).bfloat16()
    for parameter in stack.parameters():
        nn.init.normal_(parameter, std=0.02)
    block.experts = LinearExperts.of(stack)
    plan = {f"experts.{name}": WeightScheme(4, 128) for name, module in block.experts.named_modules() if "_" in name}
    context = GroupContext(
        block, Group((), "", None, ()), plan, Terms([]), RECIPES["default"], torch.bfloat16, foldable=False
    )
    weights, index = torch.rand(EXPERTS * TOKENS, EXPERTS).topk(2)
    hidden = torch.randn(EXPERTS * TOKENS, HIDDEN)
    rows = RoutedRows(hidden, hidden + 0.01, torch.ones(len(hidden)), index, weights)
    step = StackStep("experts", context, memory * 10**6)
    assert [len(part) for part in step._slices(("gate_proj", "up_proj"), block.experts.stack)] == slices
    gc.collect()
    start = rss_anon()
    with peak_rss_anon() as peak:
        step(rows, BlockDecisions(plan))
    assert not step.averaged
    moments = max(slices) * 2 * 4 * HIDDEN**2
    assert 0.9 * moments < peak[0] - start <= memory * 10**6 + BESIDE
    print(f"{memory} MB: {(peak[0] - start) / 1e6:.0f} MB")
