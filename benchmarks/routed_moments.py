"""
How well an expert's second moments predict the error of its stack, by how its tokens are weighed.

    python benchmarks/routed_moments.py > rows.jsonl
    python benchmarks/ledger.py routed_moments rows.jsonl

Each stack of the tiny VLM with experts is rounded as `default` does, on the inputs of the full-precision model. The
error is that of the stack's output on development scenes, relative to the output.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from accuracy_peers.routing_weights import KINDS, weighed_by_routing
from ledger import provenance
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from transformers_qaig.calibration.decisions import BlockDecisions, rounded
from transformers_qaig.calibration.experts import StackStep
from transformers_qaig.calibration.group_context import GroupContext
from transformers_qaig.config.recipes import RECIPES
from transformers_qaig.data.samples import load_samples
from transformers_qaig.distributed import Terms
from transformers_qaig.equalization.fold import Group
from transformers_qaig.execution.routed_rows import RoutedRows
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.nn.experts_module import LinearExperts

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES / "tiny-vlm"))
from conversations import conversation  # noqa: E402

MODEL = EXAMPLES / "tiny-vlm-moe" / "model"
DEVELOPMENT = 10_000
"""First seed of the scenes that the error is measured on."""
Calls = list[tuple[Tensor, Tensor, Tensor]]
"""What a stack was called with, joined to one call: hidden states, experts, routing weights."""


@torch.no_grad()
def stack_inputs(model: nn.Module, processor: Any, first: int, scenes: int) -> Calls:
    """Returns what every stack reads for some scenes, in the order of the blocks."""
    stacks = [layer.mlp.experts for layer in model.model.language_model.layers]
    calls: list[list[Any]] = [[] for _ in stacks]
    hooks = [
        stack.register_forward_pre_hook(lambda _, args, store=store: store.append(args))
        for stack, store in zip(stacks, calls)
    ]
    chats = [conversation(seed) for seed in range(first, first + scenes)]
    for sample in load_samples(chats, processor, num_samples=scenes, seed=0):
        model(**sample, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [tuple(torch.cat(parts) for parts in zip(*each)) for each in calls]  # type: ignore[misc]


@torch.no_grad()
def output_error(stack: nn.Module, calibration: Any, held_back: Any, bits: int, kind: str) -> float:
    """Returns Σ |y_q - y|² / Σ |y|² of a stack whose tokens were weighed as `kind` says."""
    block = nn.Module()
    block.experts = LinearExperts.of(stack)
    layout, recipe = block.experts.stack, RECIPES["default"]
    names = [f"experts.{expert}.{name}" for expert in range(layout.num_experts) for name in layout.projections]
    schemes = {name: WeightScheme(bits, 64) for name in names}
    group = Group(tuple(names), "experts", None, ())
    context = GroupContext(block, group, schemes, Terms([]), recipe, torch.bfloat16, foldable=False)
    hidden, index, weights = calibration
    rows = RoutedRows(hidden, hidden, torch.ones(len(hidden)), index, weights)
    with weighed_by_routing(kind):
        decisions = StackStep("experts", context)(rows, BlockDecisions(schemes, recipe.include_zero))
    assert decisions is not None
    wanted = block.experts(*held_back)
    difference = rounded(block, decisions, names, torch.bfloat16).experts(*held_back) - wanted
    return float(difference.square().sum() / wanted.square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[3])
    parser.add_argument("--calibration", type=int, nargs="+", default=[0, 3000, 6000], help="first seeds")
    parser.add_argument("--scenes", type=int, nargs="+", default=[16, 64], help="of a calibration set")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(MODEL)
    stacks = [layer.mlp.experts for layer in model.model.language_model.layers]
    held_back = stack_inputs(model, processor, DEVELOPMENT, 48)
    print(json.dumps(provenance()), flush=True)
    for first in options.calibration:
        inputs = stack_inputs(model, processor, first, max(options.scenes))
        for scenes in options.scenes:
            share = scenes / max(options.scenes)
            some = [tuple(part[: round(share * len(part))] for part in call) for call in inputs]
            for bits in options.bits:
                for kind in KINDS:
                    errors = [output_error(*each, bits, kind) for each in zip(stacks, some, held_back)]
                    row = {"calibration": first, "scenes": scenes, "tokens": len(some[0][0]), "bits": bits}
                    print(
                        json.dumps({**row, "weights": kind.removeprefix("routing-"), "output_error": errors}),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
