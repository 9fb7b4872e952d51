"""Damaged stacks of packed experts are errors that name the tensor, or the path in the plan."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from tests.families import save
from transformers_qaig import QAIGConfig

STACK = "model.language_model.layers.0.mlp.experts"
DOWN = f"{STACK}.0,2-3.down_proj"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose experts have two widths."""
    folder = tmp_path_factory.mktemp("experts")
    save("qwen3_vl_moe", folder / "full")
    config = QAIGConfig(recipe="rtn", group_size=32, overrides={"*.experts.1.*": 2})
    model = AutoModelForImageTextToText.from_pretrained(folder / "full", quantization_config=config)
    model.save_pretrained(folder / "packed")
    return folder / "packed"


def infinite(tensor: Tensor) -> Tensor:
    tensor.view(-1)[-1] = float("-inf")
    return tensor


TENSORS: dict[str, tuple[str, Callable[[Tensor], Tensor | None]]] = {
    "the dense weight beside the words": ("down_proj", lambda t: torch.ones(4, 64, 32)),
    "missing words": ("down_proj_packed", lambda t: None),
    "a word less": ("down_proj_packed", lambda t: t[:-1]),
    "an axis more": ("up_proj_packed", lambda t: t[None]),
    "words of another type": ("up_proj_packed", lambda t: t.long()),
    "missing zero points": ("gate_proj_zero_point", lambda t: None),
    "an expert less": ("up_proj_scale", lambda t: t[:-1]),
    "scales of another type": ("up_proj_scale", lambda t: t.double()),
    "a scale that is not finite": ("gate_proj_scale", infinite),
    "negative scales": ("gate_proj_scale", lambda t: -t),
}


@pytest.mark.parametrize("damage", TENSORS)
def test_a_damaged_tensor_of_experts_is_named(packed: Path, tmp_path: Path, damage: str) -> None:
    name, change = TENSORS[damage]
    shutil.copytree(packed, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    tensors = load_file(file)
    changed = change(tensors.pop(f"{STACK}.{name}", torch.empty(0)))
    if changed is not None:
        tensors[f"{STACK}.{name}"] = changed.contiguous()
    save_file(tensors, file, metadata)
    with pytest.raises(ValueError, match=f"{STACK}.{name}".replace(".", r"\.")):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


PLANS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another width": lambda plan: plan[DOWN].update(bits=5),
    "widths exchanged": lambda plan: plan.update(
        {
            f"{STACK}.0-1,3.down_proj": plan.pop(DOWN),
            f"{STACK}.2.down_proj": plan.pop(f"{STACK}.1.down_proj"),
        }
    ),
    "a rotation": lambda plan: plan[DOWN].update(rotation={"block": 16, "seed": 0}),
    "some experts alone": lambda plan: plan.pop(DOWN),
    "an expert twice": lambda plan: plan.update({f"{STACK}.0.down_proj": plan[DOWN]}),
    "an expert that is not there": lambda plan: plan.update({f"{STACK}.7.down_proj": plan[DOWN]}),
    "a span backwards": lambda plan: plan.update({f"{STACK}.3-1.down_proj": plan.pop(DOWN)}),
    "an endless span": lambda plan: plan.update({f"{STACK}.0-{'9' * 5000}.down_proj": plan.pop(DOWN)}),
    "a million spans": lambda plan: plan.update({f"{STACK}.{','.join(['0-3'] * 1_000_000)}.down_proj": plan.pop(DOWN)}),
    "other digits": lambda plan: plan.update({f"{STACK}.\u0663.down_proj": plan[DOWN]}),
}


@pytest.mark.parametrize("damage", PLANS)
def test_a_damaged_plan_of_experts_is_named_in_few_words(packed: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(packed, tmp_path, dirs_exist_ok=True)
    config = json.loads((packed / "config.json").read_text())
    PLANS[damage](config["quantization_config"]["plan"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.experts") as raised:
        AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("spelling", ["as saved", "every expert"])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("num_local_experts", size) for size in (0, 1, 10_000_000, 1 << 40)),
        *(("moe_intermediate_size", size) for size in (0, 1, 1 << 40)),
    ],
)
def test_sizes_of_no_stack_are_an_error_at_once(
    packed: Path, tmp_path: Path, name: str, size: int, spelling: str
) -> None:
    shutil.copytree(packed, tmp_path, dirs_exist_ok=True)
    config = json.loads((packed / "config.json").read_text())
    sizes, plan = config["text_config"], config["quantization_config"]["plan"]
    assert sizes[name]
    sizes[name] = size
    if spelling == "every expert":
        schemes = {re.sub(r"experts\.[^.]+", "experts.*", path): scheme for path, scheme in plan.items()}
        config["quantization_config"]["plan"] = schemes
    (tmp_path / "config.json").write_text(json.dumps(config))
    start = time.process_time()
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.experts"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert time.process_time() - start < 10
