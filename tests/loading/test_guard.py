"""Which tensor stops a Transformers without this package: one deep in the model, and no expert's."""

import re

import torch

from tests.config.plans import ENTRY
from transformers_qaig.formats.scheme import parse_plan
from transformers_qaig.loading.guard import NOTICE, guard_key, guard_patterns, guard_tensors
from transformers_qaig.loading.local_names import LocalPlan

PATHS = ["lm_head", "model.layers.1.mlp.up_proj", "model.layers.0.mlp.up_proj", "model.layers.0.experts.0.up_proj"]


def test_the_deepest_linear_is_taken_and_the_first_by_name() -> None:
    assert guard_key(PATHS) == "model.layers.0.mlp.up_proj.weight"
    assert guard_key(PATHS[:1]) == "lm_head.weight"


def test_an_expert_is_taken_only_where_there_is_nothing_else() -> None:
    assert guard_key(PATHS[3:]) == "model.layers.0.experts.0.up_proj.weight"


def test_guard_and_notice_are_empty_and_the_patterns_match_both() -> None:
    plan = parse_plan(dict.fromkeys(PATHS, ENTRY), 16)
    tensors = guard_tensors(plan, torch.bfloat16)
    assert {name: (t.numel(), t.dtype) for name, t in tensors.items()} == {
        guard_key(plan): (0, torch.bfloat16),
        NOTICE: (0, torch.bfloat16),
    }
    patterns = guard_patterns(LocalPlan(plan, names={path: path for path in plan}))
    assert all(any(re.search(pattern, name) for pattern in patterns) for name in tensors)
    assert not any(re.search(pattern, "model.layers.0.mlp.down_proj.weight") for pattern in patterns)
