"""Our recipes."""

from __future__ import annotations

import dataclasses
import time
from contextlib import AbstractContextManager, nullcontext

import torch

import transformers_qaig  # noqa: F401  (registers the quantizer)
from accuracy_peers import Job, Quantized, routing_weights
from accuracy_peers.altered_weights import ALTERATIONS, altered
from accuracy_peers.common import auto_class, linears_of
from accuracy_peers.tensors import Inputs, read_inputs
from accuracy_peers.token_weights import KINDS, weighed_by
from transformers_qaig import QAIGConfig, QAIGLinear
from transformers_qaig.config.budget import DEFAULT_BUDGET
from transformers_qaig.config.recipes import RECIPES
from transformers_qaig.data.tensors import NO_ANSWER
from transformers_qaig.nn.experts import QAIGExperts

ATTRIBUTED = {3: (2, 3, 4, 8), 4: DEFAULT_BUDGET.candidates}
"""Width whose size is not exceeded → widths to choose from."""


def quantize(job: Job, samples: list[Inputs]) -> Quantized:
    recipe, kind = _known(job.settings["recipe"])
    if RECIPES[recipe].reads_answers or RECIPES[recipe].end_to_end:
        samples = _labelled(job)
    budget = None
    if job.settings.get("attributed"):
        samples = _labelled(job)
        budget = dataclasses.replace(DEFAULT_BUDGET, uniform=job.bits, candidates=ATTRIBUTED[job.bits])
    config = QAIGConfig(
        bits=None if budget else job.bits,
        budget=budget,
        group_size=job.group_size,
        activation_bits=job.activation_bits,
        recipe=recipe,
        dataset=samples,
        num_samples=len(samples),
    )
    if kind in ALTERATIONS:
        weighing: AbstractContextManager[None] = altered(kind)
    elif kind in routing_weights.KINDS:
        weighing = routing_weights.weighed_by_routing(kind)
    else:
        weighing = weighed_by(kind, job.bits, job.group_size) if kind else nullcontext()
    with weighing:
        start = time.perf_counter()
        model = auto_class(job.model).from_pretrained(job.model, quantization_config=config)
        seconds = time.perf_counter() - start
    linears = {path: module.dequantize(torch.float32) for path, module in linears_of(model, QAIGLinear).items()}
    for stack, experts in linears_of(model, QAIGExperts).items():
        for projection in experts.schemes:
            each = ((f"{stack}.{e}.{projection}", e) for e in range(experts.stack.num_experts))
            linears |= {path: experts.dequantize(e, projection, torch.float32) for path, e in each}
    rotated = sum(module.rotation is not None for module in model.modules() if isinstance(module, QAIGLinear))
    settings = {"recipe": recipe, **dataclasses.asdict(RECIPES[recipe]), "rotated": rotated}
    settings |= {"token_weights": kind} if kind else {}
    settings |= {"budget": budget.to_dict(), "widest": max(budget.candidates)} if budget else {}
    return Quantized(model.to(torch.float32), linears, model.qaig_report.bits_per_weight, seconds, settings)


def _labelled(job: Job) -> list[Inputs]:
    """The samples, with labels that tell which tokens are answers."""
    samples, answers = read_inputs(job.samples)
    for sample, spans in zip(samples, answers):
        labels = torch.full_like(sample["input_ids"], NO_ANSWER)
        for start, stop in spans:
            labels[0, start:stop] = sample["input_ids"][0, start:stop]
        sample["labels"] = labels
    return samples


def _known(name: str) -> tuple[str, str]:
    """
    Make a variant such as `fast-shuffled` known to the package: recipe `fast` with other token weights.

    Returns:
        its name, and the kind of its token weights if the package has none of that kind.
    """
    for base in RECIPES:
        weights = name.removeprefix(f"{base}-")
        if name not in RECIPES and weights != name:
            package: str = weights
            if weights.removesuffix("-shuffled") in KINDS:
                package = "gradient"  # has the answers read
            elif weights in ALTERATIONS:
                package = "qig"
            elif weights in routing_weights.KINDS:
                package = "uniform"
            RECIPES[name] = dataclasses.replace(RECIPES[base], token_weights=package)  # type: ignore[arg-type]
            return name, weights if package != weights else ""
    return name, ""
