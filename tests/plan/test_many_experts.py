"""Plans of a model of Qwen3-VL-30B-A3B's shape, on the meta device: times on the processor, sizes, short plans."""

import gc
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import transformers as hf

from tests import seeds
from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.formats.scheme import Plan, parse_plan, plan_to_dict
from transformers_qaig.loading.local_names import localise
from transformers_qaig.loading.skeleton import likely_plan, packed_skeleton
from transformers_qaig.nn.experts_layout import find_experts
from transformers_qaig.plan.allocate import Options, allocate, fused_sets
from transformers_qaig.plan.build import list_schemes, make_plan
from transformers_qaig.plan.experts import compact

pytestmark = pytest.mark.slow
TEXT = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}  # fmt: skip


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fails if the processor computes longer, whatever else runs. What earlier tests left is collected before."""
    gc.collect()
    start = time.process_time()
    yield
    assert time.process_time() - start < seconds


@pytest.fixture(scope="module")
def model() -> hf.PreTrainedModel:
    with torch.device("meta"):
        return hf.Qwen3VLMoeForConditionalGeneration(hf.Qwen3VLMoeConfig(text_config=TEXT)).to(torch.bfloat16)


def mixed(options: Options) -> Plan:
    rng = seeds.python_rng()
    return {path: rng.choice(choices).scheme for path, choices in options.items()}


def test_a_plan_takes_seconds_and_all_but_routers_and_norms_is_packed(model: hf.PreTrainedModel) -> None:
    with at_most(5):
        plan, coverage = make_plan(model, QAIGConfig(bits=4))
        packed_skeleton(model, plan)
    assert coverage.packed_fraction > 0.999
    assert coverage.bits_per_weight == pytest.approx(4 + 20 / 128, abs=0.02)
    assert len(compact(plan, find_experts(model))) == 48 * 7


def test_overrides_of_many_experts_take_seconds(model: hf.PreTrainedModel) -> None:
    with at_most(5):
        plan, _ = make_plan(model, QAIGConfig(bits=4, overrides={"experts.0-63": 3, "experts.64-127.down_proj": 8}))
    widths = Counter(scheme.bits for path, scheme in plan.items() if ".experts." in path)
    assert widths == {3: 48 * 64 * 3, 8: 48 * 64, 4: 48 * 64 * 2}


def test_a_budget_is_met_in_seconds(model: hf.PreTrainedModel) -> None:
    with at_most(5):
        options, coverage = list_schemes(model, QAIGConfig(budget=BitBudget(bits=3.5, candidates=(2, 3, 4, 8))))
        fused = fused_sets(options)
        likely_plan(options, 3.5 * coverage.packed, fused)
    rng = seeds.python_rng()
    shares = {path: rng.lognormvariate(0, 2) for path in options}
    measured = {
        path: [replace(o, cost=shares[path] * o.size * 4.0**-o.scheme.bits) for o in choices]
        for path, choices in options.items()
    }
    with at_most(5):
        allocation = allocate(measured, 3.5 * coverage.packed, fused)
    assert 0.999 * 3.5 * coverage.packed < allocation.size <= 3.5 * coverage.packed


def test_ten_thousand_entries_of_a_plan_are_read_in_a_second(model: hf.PreTrainedModel) -> None:
    options, _ = list_schemes(model, QAIGConfig(budget=BitBudget(bits=3.5, candidates=(2, 3, 4, 8))))
    plan = mixed(options)
    long, short = plan_to_dict(plan), plan_to_dict(compact(plan, find_experts(model)))
    assert len(long) > 18_000
    assert len(json.dumps(short)) < len(json.dumps(long)) / 4
    for entries, seconds in ((long, len(long) / 10_000), (short, 2)):
        with at_most(seconds):
            assert localise(parse_plan(entries), model).plan == plan
